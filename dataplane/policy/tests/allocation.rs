//! A verdict allocates nothing, whatever the topic and whoever asks.
//!
//! The one file of this crate with `unsafe`: counting allocations takes a global allocator, which forwards every call unchanged.
#![allow(unsafe_code, clippy::unwrap_used)] // a counting allocator; tests fail by panicking

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::Write as _;
use std::net::IpAddr;

use sluice_policy::{Action, Generation, Request, Vars, Who, compile};
use sluice_wire::mqtt::{QoS, Version};

struct Counting;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

fn note() {
    // A thread that is ending has no counter any more, and no one to read it.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every method forwards its arguments unchanged to `System`, which upholds the contract; the counter neither
// allocates nor touches the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System` through this allocator, with this `layout`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        note();
        // SAFETY: `pointer` came from `System` through this allocator, with this `layout`.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_verdict_allocates_nothing() {
    let mut text = String::from(
        "upstreams: [{name: up, endpoints: [tcp://a:1]}]\n\
         groups: [{name: g}, {name: guests}]\n\
         listeners: [{name: l, address: 127.0.0.1:0, upstream: up, anonymous: {group: guests}}]\n\
         rules:\n- {name: connect, actions: [connect], decision: allow}\n\
         - {name: all, priority: -1, actions: [publish, subscribe], topics: [\"#\"], decision: allow, retain: strip}\n",
    );
    for index in 0..15 {
        let _ = writeln!(
            text,
            "- {{name: r{index}, who: {{listeners: [l], client_ids: [c, d{index}]}}, actions: [publish, subscribe, receive], \
             topics: [\"a/+/{index}/#\", \"+/${{client_id}}/a-level-with-a-long-name-{index}\", \"$SYS/{index}\"], decision: deny}}\n\
             - {{name: s{index}, who: {{client_ids: [c, d{index}]}}, actions: [publish], topics: [\"+/+/+\"], decision: deny, mode: shadow}}"
        );
    }
    let snapshot = compile(&text, "p.yaml", Generation(1), None).unwrap();
    let who = Who {
        listener: snapshot.listeners().first().unwrap().id,
        address: IpAddr::from([127, 0, 0, 1]),
        version: Version::V5,
        client_id: "c",
        username: None,
    };
    let classes = snapshot.admit(&who).unwrap().classes;
    let vars = Vars {
        client_id: "c",
        username: "",
    };
    let deep = "x/".repeat(1_000);
    let topics = [
        "a",
        "a/b/7/c",
        "b/c/a-level-with-a-long-name-7",
        "$SYS/7",
        "",
        "/",
        "x/y/z",
        &deep,
    ];
    let before = COUNT.get();
    for topic in topics {
        for action in [Action::Publish, Action::Receive] {
            let request = Request {
                action,
                topic,
                qos: QoS::ExactlyOnce,
                retain: true,
                payload_bytes: 100,
            };
            std::hint::black_box(snapshot.verdict(&classes, &vars, &request));
        }
    }
    assert_eq!(COUNT.get(), before);
    // The counter counts.
    std::hint::black_box(String::from("one"));
    assert_eq!(COUNT.get(), before + 1);
}
