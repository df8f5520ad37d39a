//! What a shard keeps of its recent refusals.
//!
//! A bounded store: entries expire, and when it is full one goes for each that comes, the oldest of the address that has most. So
//! an address that is refused again and again drives out its own entries only, and one that was refused a few times keeps
//! all of them unless that many addresses are refused that all have as few. Each refusal costs a few steps, whatever is in the
//! store, and no allocation once the store has been full.
//!
//! # Invariants
//!
//! - *Order*: entries stand in one list in order of time, and those of an address in another. Only the oldest of an address
//!   ever leaves, so the second list is singly linked.
//! - *Crowd*: an address stands in the list of those that have as many entries as it has; `largest` is the greatest number for
//!   which that list is not empty.

use std::collections::HashMap;
use std::hash::RandomState;
use std::net::SocketAddr;
use std::time::Duration;

use sluice_policy::Snapshot;
use sluice_wire::mqtt::{QoS, Version};

use super::query::{DenialLine, DenialList, DenialQuery};
use super::text::shown;
use crate::clock::Time;
use crate::node::Address;
use crate::node::names::{NameKey, ShownUser};
use crate::session::{Act, DecisionRecord, Reason};

/// What is older is forgotten.
pub const EXPIRES_AFTER: Duration = Duration::from_secs(3600);

/// Lines of one answer, whatever is asked for.
const LINES_MAX: u32 = 1000;

/// Texts of an entry: client id, user, topic, listener, rule; and the bytes that are kept of each.
const TEXTS: usize = 5;
const TEXT_BYTES_MAX: [usize; TEXTS] = [128, 128, 256, 64, 64];

const NONE: u32 = u32::MAX;

/// See the module documentation.
pub struct DenialRing {
    entries_max: u32,
    key: NameKey,
    entries: Vec<Entry>,
    entries_free: Vec<u32>,
    crowds: Vec<Crowd>,
    crowds_free: Vec<u32>,
    by_address: HashMap<Address, u32, RandomState>,
    /// The first and last of those with so many entries.
    by_count: Vec<(u32, u32)>,
    largest: u32,
    oldest: u32,
    newest: u32,
    /// Refusals so far: the number of the newest one.
    noted: u64,
    /// Dropped before they expired, until none was for as long as entries are kept.
    lost: u64,
    lost_at: Time,
    /// Heap behind the texts.
    text_bytes: usize,
}

struct Entry {
    number: u64,
    at: Time,
    peer: SocketAddr,
    wanted: (Act, Option<QoS>, bool, Option<u32>),
    version: Option<Version>,
    reason: Reason,
    user: ShownUser<()>,
    /// All of them, one behind the other.
    text: String,
    lens: [u16; TEXTS],
    is_cut: [bool; TEXTS],
    /// Neighbours in time, and the next of its address.
    older: u32,
    newer: u32,
    next_of_crowd: u32,
    crowd: u32,
}

/// The entries of an address.
struct Crowd {
    address: Address,
    count: u32,
    oldest: u32,
    newest: u32,
    /// Neighbours among those with as many.
    previous: u32,
    next: u32,
}

impl DenialRing {
    /// Keeps `entries_max`, and takes memory for them as they come.
    pub fn new(entries_max: u32, key: NameKey) -> Self {
        Self {
            entries_max: entries_max.clamp(1, NONE - 1),
            key,
            entries: Vec::new(),
            entries_free: Vec::new(),
            crowds: Vec::new(),
            crowds_free: Vec::new(),
            by_address: HashMap::default(),
            by_count: Vec::new(),
            largest: 0,
            oldest: NONE,
            newest: NONE,
            noted: 0,
            lost: 0,
            lost_at: Time(0),
            text_bytes: 0,
        }
    }

    /// A client was refused. Without a snapshot, nothing of the policy can be named.
    pub fn note(&mut self, now: Time, snapshot: Option<&Snapshot>, record: &DecisionRecord<'_>) {
        let Some(reason) = record.refused else {
            return;
        };
        self.expire(now);
        let address = Address::from(record.peer.ip());
        if self.len() >= self.entries_max {
            self.make_room(address);
            self.lost += 1;
            self.lost_at = now;
        }
        self.noted += 1;
        let index = self.take_entry();
        let user = self.key.shown(snapshot, record.user);
        let listener = snapshot.and_then(|snapshot| snapshot.listener(record.listener));
        let rule = record.rule.zip(snapshot);
        let texts = [
            record.client_id,
            match user {
                ShownUser::Verified(name) | ShownUser::Claimed(name) => name,
                ShownUser::Nobody | ShownUser::Hidden { .. } => "",
            },
            record.wanted.topic,
            listener.map_or("", |row| &row.name),
            rule.map_or("", |(rule, snapshot)| snapshot.rule_name(rule)),
        ];
        let crowd = self.crowd_of(address);
        let (number, newest) = (self.noted, self.newest);
        let Some(entry) = self.entries.get_mut(index as usize) else {
            return;
        };
        let wanted = record.wanted;
        entry.number = number;
        entry.at = now;
        entry.peer = record.peer;
        entry.wanted = (wanted.act, wanted.qos, wanted.retain, wanted.payload_bytes);
        entry.version = record.version;
        entry.reason = reason;
        entry.user = user.map(|_| ());
        (entry.older, entry.newer) = (newest, NONE);
        (entry.crowd, entry.next_of_crowd) = (crowd, NONE);
        let before = entry.text.capacity();
        entry.write(texts);
        self.text_bytes += entry.text.capacity() - before;
        match self.entries.get_mut(newest as usize) {
            Some(last) => last.newer = index,
            None => self.oldest = index,
        }
        self.newest = index;
        self.join(crowd, index);
    }

    /// Forgets what is too old.
    pub fn expire(&mut self, now: Time) {
        while let Some(entry) = self.entries.get(self.oldest as usize)
            && now.since(entry.at) >= EXPIRES_AFTER
        {
            let crowd = entry.crowd;
            self.remove_oldest_of(crowd);
        }
        if now.since(self.lost_at) >= EXPIRES_AFTER {
            self.lost = 0;
        }
    }

    /// Entries there are.
    pub fn len(&self) -> u32 {
        let free = self.entries_free.len();
        u32::try_from(self.entries.len() - free).unwrap_or(u32::MAX)
    }

    /// True exactly when there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Heap behind it, for the memory budget.
    pub fn heap_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
            + self.text_bytes
            + self.crowds.capacity() * size_of::<Crowd>()
            + self.by_count.capacity() * size_of::<(u32, u32)>()
            + (self.entries_free.capacity() + self.crowds_free.capacity()) * size_of::<u32>()
            + self.by_address.capacity() * (size_of::<(Address, u32)>() + 1)
    }

    /// Answers a question.
    pub fn list(&self, now: Time, query: &DenialQuery) -> DenialList {
        let limit = query.limit.clamp(1, LINES_MAX) as usize;
        // A node that was started again counts from the beginning.
        match query.after.filter(|after| *after <= self.noted) {
            Some(after) => self.list_behind(now, query, after, limit),
            None => self.list_newest(now, query, limit),
        }
    }

    fn list_newest(&self, now: Time, query: &DenialQuery, limit: usize) -> DenialList {
        let mut list = DenialList {
            next: self.noted,
            lost: self.lost,
            ..DenialList::default()
        };
        for entry in self.newest_first(now) {
            if !self.is_meant(entry, query) {
                continue;
            }
            if list.lines.len() < limit {
                list.lines.push(entry.line());
            } else {
                list.left_off += 1;
            }
        }
        list.lines.reverse();
        list
    }

    fn list_behind(&self, now: Time, query: &DenialQuery, after: u64, limit: usize) -> DenialList {
        let mut list = DenialList {
            next: self.noted,
            ..DenialList::default()
        };
        let kept = self
            .newest_first(now)
            .take_while(|entry| entry.number > after);
        let mut kept: Vec<&Entry> = kept.collect();
        kept.reverse();
        let mut seen = 0;
        for entry in kept {
            if list.lines.len() == limit {
                list.next = entry.number - 1;
                break;
            }
            seen += 1;
            if self.is_meant(entry, query) {
                list.lines.push(entry.line());
            }
        }
        list.lost = (list.next - after).saturating_sub(seen);
        list
    }

    fn newest_first(&self, now: Time) -> impl Iterator<Item = &Entry> {
        let mut at = self.newest;
        std::iter::from_fn(move || {
            let entry = self.entries.get(at as usize)?;
            at = entry.older;
            Some(entry)
        })
        .take_while(move |entry| now.since(entry.at) < EXPIRES_AFTER)
    }

    fn is_meant(&self, entry: &Entry, query: &DenialQuery) -> bool {
        let filter = &query.filter;
        let [client_id, user, ..] = entry.texts();
        let [client_id_is_cut, user_is_cut, ..] = entry.is_cut;
        filter.takes_reason(entry.reason)
            && filter.takes_address(entry.peer.ip())
            && filter.takes_client_id(client_id, client_id_is_cut)
            && filter.takes_user(&self.key, entry.user.map(|()| user), user_is_cut)
    }
}

/// The lists.
impl DenialRing {
    fn take_entry(&mut self) -> u32 {
        if let Some(index) = self.entries_free.pop() {
            return index;
        }
        self.entries.push(Entry::empty());
        u32::try_from(self.entries.len() - 1).unwrap_or(NONE)
    }

    /// The entries of an address, of which there may be none yet.
    fn crowd_of(&mut self, address: Address) -> u32 {
        if let Some(crowd) = self.by_address.get(&address) {
            return *crowd;
        }
        if self.by_count.is_empty() {
            self.by_count = vec![(NONE, NONE); self.entries_max as usize + 1];
            // Twice as much as is used: so removed ones are cleared away without another allocation.
            self.by_address.reserve(2 * self.entries_max as usize);
        }
        let crowd = Crowd {
            address,
            count: 0,
            oldest: NONE,
            newest: NONE,
            previous: NONE,
            next: NONE,
        };
        let index = match self.crowds_free.pop() {
            Some(index) => {
                if let Some(free) = self.crowds.get_mut(index as usize) {
                    *free = crowd;
                }
                index
            }
            None => {
                self.crowds.push(crowd);
                u32::try_from(self.crowds.len() - 1).unwrap_or(NONE)
            }
        };
        self.by_address.insert(address, index);
        index
    }

    /// Takes out the oldest entry of the address that has most; of the newcomer's own, when none has more.
    fn make_room(&mut self, newcomer: Address) {
        let own = self.by_address.get(&newcomer).copied();
        let own = own.filter(|own| {
            let crowd = self.crowds.get(*own as usize);
            crowd.is_some_and(|crowd| crowd.count == self.largest)
        });
        let first = self.by_count.get(self.largest as usize);
        let crowd = own.or(first.map(|(first, _)| *first));
        self.remove_oldest_of(crowd.unwrap_or(NONE));
    }

    /// An entry is the newest of an address.
    fn join(&mut self, crowd: u32, entry: u32) {
        let Some(found) = self.crowds.get_mut(crowd as usize) else {
            return;
        };
        let last = std::mem::replace(&mut found.newest, entry);
        if found.count == 0 {
            found.oldest = entry;
        } else if let Some(last) = self.entries.get_mut(last as usize) {
            last.next_of_crowd = entry;
        }
        self.recount(crowd, |count| count + 1);
    }

    fn remove_oldest_of(&mut self, crowd: u32) {
        let Some(found) = self.crowds.get_mut(crowd as usize) else {
            return;
        };
        let index = found.oldest;
        let Some(entry) = self.entries.get(index as usize) else {
            return;
        };
        let (older, newer) = (entry.older, entry.newer);
        found.oldest = entry.next_of_crowd;
        match self.entries.get_mut(older as usize) {
            Some(older) => older.newer = newer,
            None => self.oldest = newer,
        }
        match self.entries.get_mut(newer as usize) {
            Some(newer) => newer.older = older,
            None => self.newest = older,
        }
        self.entries_free.push(index);
        self.recount(crowd, |count| count - 1);
    }

    /// An address has one entry more, or less: it stands in the list of that number, at its end.
    fn recount(&mut self, crowd: u32, change: impl FnOnce(u32) -> u32) {
        let Some(found) = self.crowds.get_mut(crowd as usize) else {
            return;
        };
        let (before, after) = (found.count, change(found.count));
        let (previous, next, address) = (found.previous, found.next, found.address);
        found.count = after;
        if before > 0 {
            self.unlink(before, previous, next);
        }
        if after > 0 {
            self.link(after, crowd);
        } else {
            self.by_address.remove(&address);
            self.crowds_free.push(crowd);
        }
        self.largest = self.largest.max(after);
        let is_empty = |count: u32| {
            let ends = self.by_count.get(count as usize);
            ends.is_none_or(|(first, _)| *first == NONE)
        };
        // It can only be one less: that is where the last one of the list went.
        if self.largest > 0 && is_empty(self.largest) {
            self.largest -= 1;
        }
    }

    fn unlink(&mut self, count: u32, previous: u32, next: u32) {
        match self.crowds.get_mut(previous as usize) {
            Some(previous) => previous.next = next,
            None => {
                if let Some(ends) = self.by_count.get_mut(count as usize) {
                    ends.0 = next;
                }
            }
        }
        match self.crowds.get_mut(next as usize) {
            Some(next) => next.previous = previous,
            None => {
                if let Some(ends) = self.by_count.get_mut(count as usize) {
                    ends.1 = previous;
                }
            }
        }
    }

    fn link(&mut self, count: u32, crowd: u32) {
        let Some(ends) = self.by_count.get_mut(count as usize) else {
            return;
        };
        let last = std::mem::replace(&mut ends.1, crowd);
        if last == NONE {
            ends.0 = crowd;
        } else if let Some(last) = self.crowds.get_mut(last as usize) {
            last.next = crowd;
        }
        if let Some(found) = self.crowds.get_mut(crowd as usize) {
            (found.previous, found.next) = (last, NONE);
        }
    }
}

impl Entry {
    fn empty() -> Self {
        Self {
            number: 0,
            at: Time(0),
            peer: SocketAddr::from(([0, 0, 0, 0], 0)),
            wanted: (Act::Accept, None, false, None),
            version: None,
            reason: Reason::NoRule,
            user: ShownUser::Nobody,
            text: String::new(),
            lens: [0; TEXTS],
            is_cut: [false; TEXTS],
            older: NONE,
            newer: NONE,
            next_of_crowd: NONE,
            crowd: NONE,
        }
    }

    fn write(&mut self, texts: [&str; TEXTS]) {
        self.text.clear();
        let longest = texts.iter().zip(TEXT_BYTES_MAX);
        let bytes = longest.map(|(text, max)| text.len().min(max)).sum();
        self.text.reserve_exact(bytes); // and not up to twice as much
        let bounds = texts.into_iter().zip(TEXT_BYTES_MAX);
        let places = self.lens.iter_mut().zip(&mut self.is_cut);
        for ((text, max), (len, is_cut)) in bounds.zip(places) {
            let kept = text
                .get(..text.floor_char_boundary(max))
                .unwrap_or_default();
            self.text.push_str(kept);
            *len = u16::try_from(kept.len()).unwrap_or(u16::MAX);
            *is_cut = kept.len() < text.len();
        }
    }

    fn texts(&self) -> [&str; TEXTS] {
        let mut rest = self.text.as_str();
        self.lens.map(|len| {
            let (text, behind) = rest.split_at_checked(usize::from(len)).unwrap_or_default();
            rest = behind;
            text
        })
    }

    fn line(&self) -> DenialLine {
        let [client_id, user, topic, listener, rule] = self.texts();
        let [
            client_id_is_cut,
            user_is_cut,
            topic_is_cut,
            listener_is_cut,
            rule_is_cut,
        ] = self.is_cut;
        let (act, qos, retain, payload_bytes) = self.wanted;
        let broken = self.reason.violation().zip(self.version);
        DenialLine {
            at: self.at,
            peer: self.peer,
            listener: shown(listener, listener_is_cut),
            client_id: shown(client_id, client_id_is_cut),
            user: self.user.map(|()| shown(user, user_is_cut)),
            act,
            topic: shown(topic, topic_is_cut),
            qos,
            retain,
            payload_bytes,
            reason: self.reason,
            clause: broken.map_or("", |(violation, version)| violation.clause(version)),
            rule: shown(rule, rule_is_cut),
        }
    }
}

#[cfg(test)]
mod tests;
