//! The bare forwarders move every byte, in both directions, also more than a socket takes at once.

// A helper that cannot set up its case ends the test, as in a test function itself.
#![allow(clippy::expect_used)]

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

/// More than socket buffers hold, so that forwarders must keep some.
const BYTES: usize = 400_000;

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(program: &str, upstream: SocketAddr, more: &[&str]) -> (Running, SocketAddr) {
    let mut child = Command::new(program)
        .args(["--listen", "tcp://127.0.0.1:0", "--upstream"])
        .arg(format!("tcp://{upstream}"))
        .args(more)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the forwarder starts");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("stdout is piped");
    BufReader::new(stdout)
        .read_line(&mut line)
        .expect("it says where it listens");
    let address = line.trim().parse().expect("an address");
    (Running(child), address)
}

fn check(program: &str, more: &[&str]) {
    let upstream = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (_running, listen) = start(program, upstream.local_addr().expect("bound"), more);
    let bytes: Vec<u8> = (0..BYTES).map(|n| (n % 251) as u8).collect();
    for _ in 0..3 {
        let mut client = TcpStream::connect(listen).expect("it accepts");
        client.write_all(b"first").expect("it takes bytes");
        let (mut broker, _) = upstream.accept().expect("it dials");
        let mut first = [0; 5];
        broker.read_exact(&mut first).expect("it forwards");
        assert_eq!(&first, b"first");
        for (from, to) in [(&client, &broker), (&broker, &client)] {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut from = from;
                    from.write_all(&bytes).expect("it takes everything");
                });
                let mut seen = vec![0; BYTES];
                let mut to = to;
                to.read_exact(&mut seen).expect("it passes everything on");
                assert!(seen == bytes, "bytes changed or moved");
            });
        }
        client.shutdown(Shutdown::Write).expect("still open");
        assert_eq!(broker.read(&mut [0]).expect("ended, not broken"), 0);
    }
}

#[test]
fn epoll_moves_every_byte() {
    check(env!("CARGO_BIN_EXE_forward_epoll"), &[]);
}

#[test]
fn monoio_moves_every_byte() {
    check(env!("CARGO_BIN_EXE_forward_monoio"), &[]);
}

#[test]
fn uring_moves_every_byte() {
    check(env!("CARGO_BIN_EXE_forward_uring"), &[]);
}

#[test]
fn uring_moves_every_byte_when_it_waits() {
    check(env!("CARGO_BIN_EXE_forward_uring"), &["--min-wait", "300"]);
}
