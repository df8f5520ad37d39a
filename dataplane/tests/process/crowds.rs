//! Crowds against the binary: connections that say nothing, and passwords that are guessed.

use std::net::{SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};

use super::harness::{Device, Running, broker};
use super::{SECRET, hashes, login_policy, open_policy};

/// bcrypt, cost 8, of `secret`: slow enough for checks to pile up, quick enough for a loaded machine.
const MIDDLING_SECRET: &str = "$2b$08$CFhggLUUUgNKRKMvlo6JiumpyecyocDpougBuiHfuQKbsyqfIAVsK";

const CROWD: [u8; 4] = [127, 0, 0, 2];

/// A connection that says nothing.
fn silent(source: [u8; 4], to: SocketAddr) -> Device {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let source = SocketAddr::from((source, 0));
    socket.bind(&source.into()).expect("an address of loopback");
    socket.connect(&to.into()).expect("the listener accepts");
    Device {
        stream: TcpStream::from(socket),
    }
}

#[test]
fn silent_connections_of_one_address_keep_no_other_out_and_the_log_names_it() {
    let args = ["--shards", "2", "--connections-max", "200"];
    let args = [&args[..], &["--strangers-grace", "1h"]].concat();
    let mut running = Running::start_ready(&open_policy(broker()), &args);
    let port = running.listener("devices");
    let _crowd: Vec<Device> = (0..220).map(|_| silent(CROWD, port)).collect();
    // 200 places: 150 for strangers, 113 for those of one address.
    running.wait_for("/metrics", |page| {
        page.body.contains("\nsluice_strangers 113\n")
            && page.body.contains("{reason=\"strangers_address\"} 107\n")
    });
    for (series, limit) in [
        ("sluice_strangers_limit ", 150.0),
        ("sluice_strangers_per_address_limit ", 113.0),
        (
            "sluice_listener_strangers_limit{listener=\"devices\"} ",
            150.0,
        ),
        ("sluice_connections_open_limit ", 200.0),
        ("sluice_connections_limit{listener=\"devices\"} ", 200.0),
        ("sluice_sessions_limit{shard=\"1\"} ", 200.0),
    ] {
        assert_eq!(running.metric(series), Some(limit), "{series}");
    }
    let line = running.wait_log("connections are turned away");
    assert!(
        line.contains("127.0.0.2") && line.contains("strangers_address"),
        "{line}"
    );
    let mut devices: Vec<Device> = (0..20)
        .map(|n| Device::connect(port, &format!("d{n}"), None))
        .collect();
    assert!(devices.iter_mut().all(|device| device.connack() == 0));
}

#[test]
fn strangers_max_and_grace_decide_who_gives_way() {
    for (flag, grace, gives_way) in [
        ("--strangers-max", "0s", true),
        ("--strangers-per-address-max", "0s", true),
        ("--strangers-max", "1h", false),
    ] {
        let args = ["--shards", "1", flag, "2", "--strangers-grace", grace];
        let running = Running::start_ready(&open_policy(broker()), &args);
        let port = running.listener("devices");
        let mut first = silent(CROWD, port);
        let _second = silent([127, 0, 0, 2], port);
        running.wait_for("/metrics", |page| {
            page.body.contains("\nsluice_strangers 2\n")
        });
        let mut third = silent(CROWD, port);
        if gives_way {
            first.closed();
        } else {
            third.closed();
        }
        let gave_way = running.metric("sluice_strangers_gave_way_total ");
        assert_eq!(
            gave_way,
            Some(f64::from(u8::from(gives_way))),
            "{flag} {grace}"
        );
    }
}

#[test]
fn a_device_that_was_here_before_is_ahead_of_guesses_from_its_own_address() {
    let policy = login_policy(broker(), MIDDLING_SECRET);
    // Without the cache, each login is a check; the queue decides when.
    let args = ["--shards", "1", "--auth-threads", "1", "--auth-cache", "0"];
    let running = Running::start_ready(&policy, &[&args[..], &["--auth-deadline", "1h"]].concat());
    let port = running.listener("devices");
    let login = Some(("u", "secret"));
    assert_eq!(Device::connect(port, "c", login).connack(), 0);
    assert_eq!(running.metric("sluice_auth_known_entries "), Some(1.0));
    let _guesses: Vec<Device> = (0..60)
        .map(|n| {
            let (user, password) = (format!("name-{}", n % 20), format!("guess-{n}"));
            Device::connect(port, &format!("g{n}"), Some((&user, &password)))
        })
        .collect();
    // Some have been answered by now.
    running.wait_for("/metrics", |page| {
        let waiters = page.body.lines();
        let waiters = waiters.filter_map(|line| line.strip_prefix("sluice_auth_waiters "));
        waiters.flat_map(str::parse::<u32>).any(|count| count >= 30)
    });
    let before = hashes(&running);
    let mut device = Device::connect(port, "c", login);
    assert_eq!(device.connack(), 0);
    // Its own, the one at work, and those done while the test was busy elsewhere.
    let verified = hashes(&running) - before;
    assert!(verified < 30.0, "{verified}");
}

#[test]
fn auth_known_can_be_turned_off() {
    let args = ["--shards", "1", "--auth-known", "0"];
    let running = Running::start_ready(&login_policy(broker(), SECRET), &args);
    let port = running.listener("devices");
    let login = Some(("u", "secret"));
    assert_eq!(Device::connect(port, "c", login).connack(), 0);
    assert_eq!(running.metric("sluice_auth_known_entries "), Some(0.0));
    assert_eq!(running.metric("sluice_auth_cache_entries "), Some(1.0));
}

#[test]
fn guessing_is_in_the_log_without_a_name() {
    let args = ["--shards", "1", "--auth-threads", "1"];
    let mut running = Running::start_ready(&login_policy(broker(), MIDDLING_SECRET), &args);
    let port = running.listener("devices");
    // The same guess: those that come while it is verified fail together, however slow the machine is.
    let mut guesses: Vec<Device> = (0..30)
        .map(|n| Device::connect_from(CROWD, port, &format!("g{n}"), Some(("somebody", "hunter2"))))
        .collect();
    assert!(guesses.iter_mut().all(|guess| guess.connack() == 4));
    assert_eq!(running.metric("sluice_auth_failures_total "), Some(30.0));
    let line = running.wait_log("passwords are guessed");
    assert!(
        line.contains("127.0.0.2") && line.contains("names=1"),
        "{line}"
    );
    assert!(running.logged("somebody").is_none() && running.logged("hunter2").is_none());
}
