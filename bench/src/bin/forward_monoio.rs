//! The bare forwarder on monoio: two tasks for each connection, each reading into a buffer of its own.
//!
//! For the runtime bench: what a ready-made runtime costs on the same job. It follows the rules that monoio 0.2.4 needs:
//! accepting by readiness (an accept that is dropped leaks the connection), no task that yields by waking itself.

use std::rc::Rc;

use clap::Parser as _;
use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt, Splitable};
use monoio::net::{TcpListener, TcpStream};
use monoio::{IoUringDriver, RuntimeBuilder};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use sluice_bench::forward::Options;

const BUFFER_BYTES: usize = 4_096;

fn main() -> anyhow::Result<()> {
    let options = Rc::new(Options::parse());
    let listener = options.listen()?;
    let mut runtime = RuntimeBuilder::<IoUringDriver>::new()
        .with_entries(4_096)
        .build()?;
    runtime.block_on(async {
        let readiness = TcpListener::from_std(listener.try_clone()?)?;
        loop {
            readiness.readable(false).await?;
            loop {
                match accept_with(&listener, SocketFlags::CLOEXEC) {
                    Ok(client) => {
                        rustix::net::sockopt::set_tcp_nodelay(&client, true)?;
                        let client = TcpStream::from_std(client.into())?;
                        monoio::spawn(serve(client, Rc::clone(&options)));
                    }
                    Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
    })
}

async fn serve(client: TcpStream, options: Rc<Options>) {
    let Ok(upstream) = options.dial() else { return };
    // The ring waits by itself, but not on a descriptor that says it must not.
    if rustix::io::ioctl_fionbio(&upstream, false).is_err() {
        return;
    }
    let Ok(upstream) = TcpStream::from_std(upstream.into()) else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_upstream, to_upstream) = upstream.into_split();
    monoio::spawn(copy(from_upstream, to_client));
    copy(from_client, to_upstream).await;
}

async fn copy(mut from: impl AsyncReadRent, mut to: impl AsyncWriteRent) {
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    loop {
        let (result, read) = from.read(buffer).await;
        if !matches!(result, Ok(1..)) {
            break;
        }
        let (result, written) = to.write_all(read).await;
        if result.is_err() {
            break;
        }
        buffer = written;
        buffer.clear();
    }
    let _ = to.shutdown().await;
}
