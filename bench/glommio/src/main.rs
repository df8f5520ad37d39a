//! The bare forwarder on glommio: two tasks for each connection, each reading into a buffer of its own.
//!
//! For the runtime bench: what the other ready-made runtime costs on the same job. It takes the options of the other
//! forwarders, as far as glommio can do them: it dials by TCP or Unix socket and listens by TCP. It is a floor and has no
//! limits worth the name.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::str::FromStr;

use clap::Parser;
use futures_lite::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use glommio::net::{TcpListener, TcpStream, UnixStream};
use glommio::{LocalExecutorBuilder, Placement};

const BUFFER_BYTES: usize = 4_096;

/// Options of the forwarder.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Options {
    /// Where to listen: tcp://host:port
    #[arg(long)]
    listen: Address,
    /// Where to forward to: tcp://host:port or unix:///path
    #[arg(long)]
    upstream: Address,
}

#[derive(Clone, Debug)]
enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix://") {
            return Ok(Self::Unix(path.into()));
        }
        text.strip_prefix("tcp://")
            .and_then(|address| address.parse().ok())
            .map(Self::Tcp)
            .ok_or_else(|| format!("`{text}` is neither tcp://address:port nor unix:///path"))
    }
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    // It takes the processor it is given (taskset), as the other forwarders do.
    let executor = LocalExecutorBuilder::new(Placement::Unbound)
        .make()
        .map_err(failed)?;
    executor.run(accept(options))
}

async fn accept(options: Options) -> anyhow::Result<()> {
    let Address::Tcp(address) = options.listen else {
        anyhow::bail!("forwarders listen by TCP");
    };
    let listener = bind(address)?;
    writeln!(std::io::stdout(), "{}", local(&listener)?)?;
    let upstream = Rc::new(options.upstream);
    loop {
        let client = listener.accept().await.map_err(failed)?;
        glommio::spawn_local(serve(client, Rc::clone(&upstream))).detach();
    }
}

fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).map_err(failed)
}

fn local(listener: &TcpListener) -> anyhow::Result<SocketAddr> {
    listener.local_addr().map_err(failed)
}

/// Its errors cannot cross threads, as anyhow's must.
fn failed(error: glommio::GlommioError<()>) -> anyhow::Error {
    anyhow::anyhow!("{error}")
}

async fn serve(client: TcpStream, upstream: Rc<Address>) {
    if client.set_nodelay(true).is_err() {
        return;
    }
    match &*upstream {
        Address::Tcp(address) => {
            let Ok(upstream) = TcpStream::connect(address).await else {
                return;
            };
            if upstream.set_nodelay(true).is_ok() {
                forward(client, upstream).await;
            }
        }
        Address::Unix(path) => {
            if let Ok(upstream) = UnixStream::connect(path).await {
                forward(client, upstream).await;
            }
        }
    }
}

async fn forward<U>(client: TcpStream, upstream: U)
where
    U: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (from_client, to_client) = futures_lite::io::split(client);
    let (from_upstream, to_upstream) = futures_lite::io::split(upstream);
    glommio::spawn_local(copy(from_upstream, to_client)).detach();
    copy(from_client, to_upstream).await;
}

async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let Some(bytes) = buffer.get(..read) else {
            break;
        };
        if to.write_all(bytes).await.is_err() {
            break;
        }
    }
    // The other direction ends by itself.
    let _ = to.close().await;
}
