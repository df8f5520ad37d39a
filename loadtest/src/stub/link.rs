//! One connection of the stub: a thread that reads and records, a thread that writes.
//!
//! The reading thread owns the protocol of the connection and asks the broker under the stub's lock; the writing thread
//! owns nothing but the stream, so a client that does not read holds up nobody else.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, PoisonError, Weak};

use sluice_wire::mqtt::{Side, Version, decode, decode_connect};

use super::broker::LinkId;
use super::peer::End;
use super::script::{OnConnect, Script};
use super::{Shared, State, spawn};
use crate::packet::{Cutter, Frame, Props, connack, disconnect_with};
use crate::stream::Stream;

/// Writes waiting for one connection; a client so far behind is cut off.
const WRITES_MAX: usize = 4_096;
/// Bytes recorded of one connection; later packets are handled but not kept.
const RECORD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What the stub knows of a connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) client_id: Option<String>,
    pub(super) version: Version,
    pub(super) script: Script,
    pub(super) is_taken: bool,
    pub(super) is_stalled: bool,
    /// CONNECT was held back and may be answered.
    pub(super) is_released: bool,
    pub(super) frames: Vec<Frame>,
    pub(super) frames_bytes: usize,
    pub(super) end: Option<End>,
    writes: SyncSender<Order>,
    /// For cutting it off; the two threads own the stream.
    stream: Weak<Stream>,
}

enum Order {
    Bytes(Vec<u8>),
    Finish,
    Close,
    Reset,
}

impl Link {
    pub(super) fn send(&mut self, bytes: Vec<u8>) {
        self.tell(Order::Bytes(bytes));
    }
    pub(super) fn finish(&mut self) {
        self.tell(Order::Finish);
    }
    pub(super) fn close(&mut self) {
        self.tell(Order::Close);
    }
    pub(super) fn reset(&mut self) {
        self.tell(Order::Reset);
    }

    fn tell(&mut self, write: Order) {
        if let Err(TrySendError::Full(_)) = self.writes.try_send(write) {
            self.end.get_or_insert(End::TooSlow);
            if let Some(stream) = self.stream.upgrade() {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

/// Accepts until the listening socket numbered `number` is taken off the list.
pub(super) fn accept(
    shared: &Arc<Shared>,
    number: u64,
    mut next: impl FnMut() -> io::Result<Stream>,
) {
    loop {
        let accepted = next();
        let mut state = shared.lock();
        if !state.listening.contains(&number) {
            return;
        }
        let Ok(stream) = accepted else {
            continue;
        };
        let stream = Arc::new(stream);
        state.accepted += 1;
        let id = LinkId(state.accepted);
        let (writes, to_write) = sync_channel(WRITES_MAX);
        state.links.insert(
            id,
            Link {
                client_id: None,
                version: Version::V311,
                script: Script::new(),
                is_taken: false,
                is_stalled: false,
                is_released: false,
                frames: Vec::new(),
                frames_bytes: 0,
                end: None,
                writes,
                stream: Arc::downgrade(&stream),
            },
        );
        drop(state);
        shared.changed.notify_all();
        let for_writing = Arc::clone(&stream);
        let for_reading = Arc::clone(shared);
        let started = spawn(move || write(&for_writing, &to_write))
            .and_then(|_| spawn(move || Reader::new(for_reading, id, stream).run()));
        if started.is_err() {
            end(shared, id, End::Reset);
        }
    }
}

fn write(stream: &Stream, writes: &Receiver<Order>) {
    let _ = stream.set_timeout(None);
    while let Ok(write) = writes.recv() {
        match write {
            Order::Bytes(bytes) => {
                let mut stream = stream;
                if stream.write_all(&bytes).is_err() {
                    return;
                }
            }
            Order::Finish => {
                let _ = stream.shutdown(Shutdown::Write);
            }
            Order::Close => {
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
            Order::Reset => {
                // Shutting the reading side sends nothing; it makes the reading thread let go of the stream, and the
                // last to let go resets it.
                let _ = stream.reset_on_close();
                let _ = stream.shutdown(Shutdown::Read);
                return;
            }
        }
    }
}

/// The connection is over.
fn end(shared: &Shared, id: LinkId, how: End) {
    let mut state = shared.lock();
    state.broker.close(id, true);
    state.carry_out();
    if let Some(link) = state.links.get_mut(&id) {
        link.end.get_or_insert(how);
        link.close();
    }
    if state.is_forgetful {
        state.links.remove(&id);
    }
    drop(state);
    shared.changed.notify_all();
}

struct Reader {
    shared: Arc<Shared>,
    id: LinkId,
    stream: Arc<Stream>,
    version: Option<Version>,
    cutter: Cutter,
}

/// Whether the reading thread goes on.
enum Next {
    Go,
    Stop(End),
}

impl Reader {
    fn new(shared: Arc<Shared>, id: LinkId, stream: Arc<Stream>) -> Self {
        Self {
            shared,
            id,
            stream,
            version: None,
            cutter: Cutter::default(),
        }
    }

    fn run(mut self) {
        let how = self.read_to_end();
        end(&self.shared, self.id, how);
    }

    fn read_to_end(&mut self) -> End {
        let mut buffer = [0; 16 * 1024];
        loop {
            self.wait_while_stalled();
            let count = match (&*self.stream).read(&mut buffer) {
                Ok(0) => return End::Closed,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return End::Reset,
            };
            self.cutter.push(buffer.get(..count).unwrap_or(&[]));
            loop {
                match self.cutter.cut() {
                    Ok(None) => break,
                    Ok(Some(frame)) => match self.handle(frame) {
                        Next::Go => {}
                        Next::Stop(how) => return how,
                    },
                    Err(_) => return End::NotMqtt,
                }
            }
        }
    }

    fn wait_while_stalled(&self) {
        let state = self.shared.lock();
        let stalled = |state: &mut State| {
            let link = state.links.get(&self.id);
            link.is_some_and(|link| link.is_stalled && link.end.is_none())
        };
        let waited = self.shared.changed.wait_while(state, stalled);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Records a packet and lets the broker answer it.
    fn handle(&mut self, frame: Frame) -> Next {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        let next = match self.version {
            None => self.handle_connect(&mut state, &frame),
            Some(version) => self.handle_packet(&mut state, version, &frame),
        };
        state.carry_out();
        let keeps = !state.is_forgetful;
        if let Some(link) = state.links.get_mut(&self.id)
            && keeps
            && link.frames_bytes + frame.bytes.len() <= RECORD_BYTES_MAX
        {
            link.frames_bytes += frame.bytes.len();
            link.frames.push(frame);
        }
        drop(state);
        shared.changed.notify_all();
        next
    }

    fn handle_connect(&mut self, state: &mut State, frame: &Frame) -> Next {
        let Ok(connect) = decode_connect(&frame.bytes) else {
            return Next::Stop(End::NotMqtt);
        };
        self.version = Some(connect.version);
        let script = state
            .scripts
            .get(&Some(connect.client_id.to_owned()))
            .or_else(|| state.scripts.get(&None))
            .cloned()
            .unwrap_or_default();
        let Some(link) = state.links.get_mut(&self.id) else {
            return Next::Stop(End::Closed);
        };
        link.client_id = Some(connect.client_id.to_owned());
        link.version = connect.version;
        link.is_stalled = script.is_stalled;
        link.script = script.clone();
        match script.on_connect {
            OnConnect::Accept => {
                accept_connect(state, self.id, &connect);
                Next::Go
            }
            OnConnect::Hold => Next::Go,
            OnConnect::Refuse(code) => {
                link.send(connack(connect.version, false, code, &script.connack_props));
                Next::Stop(End::Refused)
            }
            OnConnect::Reset => {
                link.reset();
                Next::Stop(End::Refused)
            }
            OnConnect::Close => Next::Stop(End::Refused),
        }
    }

    fn handle_packet(&mut self, state: &mut State, version: Version, frame: &Frame) -> Next {
        let Some(link) = state.links.get_mut(&self.id) else {
            return Next::Stop(End::Closed);
        };
        let is_answered = link.script.on_connect != OnConnect::Hold || link.is_released;
        if link.script.is_manual || !is_answered {
            return Next::Go;
        }
        let is_legal = match decode(version, Side::Client, &frame.bytes) {
            Ok(packet) => state.broker.handle(self.id, &packet),
            Err(_) => false,
        };
        if is_legal {
            return Next::Go;
        }
        if version == Version::V5
            && let Some(link) = state.links.get_mut(&self.id)
        {
            link.send(disconnect_with(0x82, &Props::new()));
        }
        Next::Stop(End::NotMqtt)
    }
}

/// Opens the session of `connect` and writes CONNACK.
pub(super) fn accept_connect(
    state: &mut State,
    id: LinkId,
    connect: &sluice_wire::mqtt::Connect<'_>,
) {
    let mut client_id = connect.client_id.to_owned();
    let Some(link) = state.links.get(&id) else {
        return;
    };
    let mut props = link.script.connack_props.clone();
    let is_manual = link.script.is_manual;
    if client_id.is_empty() {
        state.assigned_next += 1;
        client_id = format!("stub-assigned-{}", state.assigned_next);
        props = props.text(0x12, &client_id);
    }
    let opened = if is_manual {
        Some(false)
    } else {
        state.broker.open(id, connect, &client_id)
    };
    state.carry_out();
    let Some(link) = state.links.get_mut(&id) else {
        return;
    };
    link.client_id = Some(client_id);
    match opened {
        Some(is_present) => {
            // Version 3.1 has no Session Present: the byte is reserved.
            let is_present = is_present && connect.version != Version::V31;
            link.send(connack(connect.version, is_present, 0, &props));
            state.broker.resume(id);
        }
        None => {
            let code = if connect.version == Version::V5 {
                0x88
            } else {
                3
            };
            link.send(connack(connect.version, false, code, &props));
            link.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_beyond_the_bound_cut_the_link() {
        let (writes, waiting) = sync_channel(2);
        let mut link = Link {
            client_id: None,
            version: Version::V5,
            script: Script::new(),
            is_taken: false,
            is_stalled: false,
            is_released: false,
            frames: Vec::new(),
            frames_bytes: 0,
            end: None,
            writes,
            stream: Weak::new(),
        };
        for _ in 0..2 {
            link.send(vec![0]);
            assert_eq!(link.end, None);
        }
        link.send(vec![0]);
        assert_eq!(link.end, Some(End::TooSlow));
        drop(waiting);
    }
}
