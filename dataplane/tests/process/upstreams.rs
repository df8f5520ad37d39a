//! Brokers that do not work: clients get in all the same where there is another, and operators are told what is down.

use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Socket, Type};

use crate::harness::{Device, Running, broker};
use crate::open_policy;

/// A port on which nothing listens, for as long as the socket lives.
fn refusing() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).expect("a port");
    let address = socket.local_addr().expect("bound").as_socket();
    (socket, address.expect("an address"))
}

/// A broker that accepts connections and closes them.
fn closing() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || listener.incoming().for_each(drop));
    address
}

fn with_upstream(more: &str, upstream: SocketAddr) -> String {
    let endpoint = format!("'tcp://{upstream}']");
    open_policy(upstream).replace(&endpoint, &format!("{endpoint}, {more}"))
}

#[test]
fn with_a_broker_that_closes_beside_one_that_works_every_login_succeeds() {
    for engine in ["auto", "epoll"] {
        for balance in ["round_robin", "least_connections", "client_id"] {
            let (bad, good) = (closing(), broker());
            let policy = with_upstream(
                &format!("balance: {balance}, breaker: {{failures: 3, open: 1h}}"),
                good,
            )
            .replace("endpoints: [", &format!("endpoints: ['tcp://{bad}', "));
            let running = Running::start_ready(&policy, &["--shards", "1", "--engine", engine]);
            let devices: Vec<Device> = (0..20)
                .map(|number| {
                    let id = format!("device-{number}");
                    let mut device = Device::connect(running.listener("devices"), &id, None);
                    assert_eq!(device.connack(), 0, "{engine} {balance}: {id}");
                    device
                })
                .collect();
            let endpoints = running.json("/upstreams");
            let reason = endpoints["endpoints"][0]["reason"].as_str();
            assert_eq!(reason, Some("closed_before_connack"), "{endpoints}");
            assert_eq!(endpoints["endpoints"][1]["reason"].as_str(), None);
            let taken = "sluice_connect_second_chances_total{result=\"taken\"}";
            let taken = running.metric(taken).expect("a counter");
            assert!((1.0..=3.0).contains(&taken), "{engine} {balance}: {taken}");
            drop(devices);
        }
    }
}

#[test]
fn an_upstream_that_is_down_is_said_and_makes_the_node_unready_when_asked_to() {
    let (_held, nowhere) = refusing();
    let more = "dial: {attempts_max: 1}, breaker: {failures: 1, open: 1h}";
    let policy = with_upstream(more, nowhere);
    for (args, status) in [
        (["--shards", "1"].as_slice(), 200),
        (&["--shards", "1", "--unready-without-upstream"], 503),
    ] {
        let mut running = Running::start_ready(&policy, args);
        let mut device = Device::connect(running.listener("devices"), "device", None);
        assert_eq!(device.connack(), 3);
        let said =
            format!("upstream `broker` has no endpoint that works: tcp://{nowhere}: refused");
        let ready = running.get("/readyz?verbose");
        assert!(ready.body.contains(&said), "{}", ready.body);
        assert_eq!(ready.status, status);
        let line = running.wait_log("endpoint is left alone");
        for part in [nowhere.to_string().as_str(), "refused"] {
            assert!(line.contains(part), "{line}");
        }
        let down = format!(
            "sluice_upstream_endpoint_down{{upstream=\"broker\",endpoint=\"tcp://{nowhere}\",reason=\"refused\"}}"
        );
        assert_eq!(running.metric(&down), Some(1.0));
    }
}

#[test]
fn a_name_without_an_address_is_said() {
    let (_held, nowhere) = refusing();
    let policy = open_policy(nowhere).replace(&nowhere.to_string(), "no-such-host.invalid:1883");
    let mut running = Running::start_ready(&policy, &["--shards", "1"]);
    let line = running.wait_log("its name has no address");
    assert!(line.contains("no-such-host.invalid"), "{line}");
    let ready = running.get("/readyz");
    assert_eq!(
        (ready.status, ready.body.as_str()),
        (200, "ready, but degraded\n")
    );
}
