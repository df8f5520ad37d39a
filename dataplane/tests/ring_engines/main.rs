//! The behaviour of the real engines over loopback sockets: one function for each, run against io_uring and epoll.
//!
//! Where io_uring is not available its half fails: what was not run was not shown. Nothing sleeps; every wait is for an
//! event, under one generous bound.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::wildcard_enum_match_arm,
    clippy::needless_pass_by_value,
    reason = "a test fails by panicking, and names only the events it is about"
)]

mod chaos;
mod connections;
mod driver;
mod receiving;
mod sending;

use sluice_dataplane::ring::{Epoll, Uring};

/// Runs every behaviour against both engines.
macro_rules! on_both_engines {
    ($($file:ident: $($behaviour:ident)*;)*) => {
        mod uring {
            $($(#[test] fn $behaviour() { crate::$file::$behaviour(super::Uring::new); })*)*
        }
        mod epoll {
            $($(#[test] fn $behaviour() { crate::$file::$behaviour(super::Epoll::new); })*)*
        }
    };
}

on_both_engines! {
    chaos:
        random_calls_keep_the_surface
    ;
    sending:
        echo_keeps_every_byte_in_order
        short_sends_lose_nothing_with_a_slow_reader
        many_pieces_leave_as_one_send
        two_sends_in_one_turn_join
        nothing_is_heard_after_close_with_an_owned_send_in_flight
        a_reset_in_mid_send_is_told
        fin_comes_after_all_bytes
        fin_waits_for_an_owned_send
        edits_of_a_lease_are_sent
        a_send_during_an_owned_send_comes_back
    ;
    receiving:
        fast_senders_without_buffers_wait_in_turn
        a_waiting_socket_is_armed_when_leases_return
        a_pause_is_answered_once
        a_pause_races_with_the_end
        a_pause_taken_back_is_not_answered
        pausing_a_waiting_receive_is_answered
        both_directions_end_apart
        another_thread_wakes_a_turn
        a_turn_returns_at_its_deadline
        a_latency_budget_gathers_events
    ;
    connections:
        stale_ids_are_silent
        refused_connects_fail
        a_refused_connect_keeps_its_id
        a_pending_connect_can_be_closed
        unix_sockets_connect_and_accept
        an_accept_storm_is_accepted
        without_free_slots_connections_are_closed
        a_stopped_listener_refuses
        a_slot_is_used_again_with_a_new_epoch
    ;
}
