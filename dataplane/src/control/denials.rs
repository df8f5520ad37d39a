//! Why devices were refused: the shards' recent refusals, as one list.
//!
//! All shards are asked at once, and what they answer is put in order of time. Bounded in lines, in questions and in time; what
//! was left off, and what shards had to forget before its time, is said.

use std::fmt::Write;

use super::*;
use crate::node::{DenialFilter, DenialLine, DenialList, DenialQuery};

/// Lines of one answer.
pub const LINES_MAX: u32 = 500;
/// Questions in work; one more is told to come back.
const WAITING_MAX: usize = 64;

/// Recent refusals of a node.
#[derive(Clone, Debug, Default)]
pub struct DenialPage {
    /// In order of time; each with its shard, and when it was in milliseconds since 1970.
    pub lines: Vec<(u16, u64, DenialLine)>,
    /// What to ask for next, to hear only of what is new.
    pub next: DenialCursor,
    /// Older ones that match and found no room.
    pub left_off: u64,
    /// Those that were dropped to make room before their time.
    pub lost: u64,
    /// Why the answer is not whole, in one line; empty: it is.
    pub error: String,
}

/// Where a list of refusals goes on: the last one that was seen of each shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DenialCursor(Vec<u64>);

impl std::fmt::Display for DenialCursor {
    /// As [`std::str::FromStr`] reads it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, number) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_char('.')?;
            }
            write!(f, "{number}")?;
        }
        Ok(())
    }
}

impl std::str::FromStr for DenialCursor {
    type Err = BadCursor;

    fn from_str(text: &str) -> Result<Self, BadCursor> {
        let numbers = text.split('.').map(str::parse);
        let numbers: Result<Vec<u64>, _> = numbers.collect();
        numbers.map(Self).map_err(|_| BadCursor)
    }
}

/// A question on its way.
pub(super) struct Asking {
    request: u64,
    until: Time,
    limit: usize,
    is_first: bool,
    /// By shard.
    has_answered: Vec<bool>,
    page: DenialPage,
    reply: oneshot::Sender<DenialPage>,
}

impl Control {
    pub(super) fn ask_for_denials(
        &mut self,
        after: Option<DenialCursor>,
        limit: u32,
        filter: &DenialFilter,
        reply: oneshot::Sender<DenialPage>,
    ) {
        if self.waiting_for_denials.len() >= WAITING_MAX {
            let error = "the node is busy with other questions; ask again".into();
            let busy = DenialPage {
                error,
                ..DenialPage::default()
            };
            let _ = reply.send(busy); // who asked may have gone
            return;
        }
        self.report_number += 1;
        let request = self.report_number;
        let limit = limit.clamp(1, LINES_MAX);
        let is_first = after.is_none();
        // Who follows hears everything, so what does not fit is left for the next question.
        let shards = u32::try_from(self.links.len()).unwrap_or(u32::MAX);
        let of_shard = if is_first {
            limit
        } else {
            limit.div_ceil(shards.max(1))
        };
        let mut next = after.unwrap_or_default().0;
        next.resize(self.links.len(), 0);
        let mut has_answered = Vec::new();
        for ((link, shard), from) in self.links.iter().zip(&self.shards).zip(&next) {
            let query = Box::new(DenialQuery {
                after: (!is_first).then_some(*from),
                limit: of_shard,
                filter: filter.clone(),
            });
            let question = ToShard::ListDenials { request, query };
            // One that takes nothing shows by its silence.
            has_answered.push(shard.has_ended || link.send(question).is_err());
        }
        self.waiting_for_denials.push(Asking {
            request,
            until: clock::monotonic().after(REPORT_WAIT),
            limit: limit as usize,
            is_first,
            has_answered,
            page: DenialPage {
                next: DenialCursor(next),
                ..DenialPage::default()
            },
            reply,
        });
        self.answer_late_denials(clock::monotonic());
    }

    pub(super) fn denials_listed(
        &mut self,
        shard: ShardId,
        request: u64,
        list: Option<Box<DenialList>>,
    ) {
        let mut waiting = self.waiting_for_denials.iter_mut();
        if let Some(asking) = waiting.find(|asking| asking.request == request) {
            asking.take(
                shard,
                list.map(|list| *list),
                clock::monotonic(),
                clock::unix_millis(),
            );
        }
        self.answer_late_denials(clock::monotonic());
    }

    pub(super) fn answer_late_denials(&mut self, now: Time) {
        let is_over =
            |asking: &mut Asking| now >= asking.until || asking.has_answered.iter().all(|yes| *yes);
        for asking in self.waiting_for_denials.extract_if(.., is_over) {
            asking.answer();
        }
    }
}

impl Asking {
    fn take(&mut self, shard: ShardId, list: Option<DenialList>, now: Time, unix_ms: u64) {
        let index = usize::from(shard.0);
        match self.has_answered.get_mut(index) {
            Some(has_answered) if !*has_answered => *has_answered = true,
            Some(_) | None => return,
        }
        let Some(list) = list else {
            self.page.error = "the node keeps no refusals (--denials-max 0)".into();
            return;
        };
        let page = &mut self.page;
        if let Some(next) = page.next.0.get_mut(index) {
            *next = list.next;
        }
        page.left_off += list.left_off;
        page.lost += list.lost;
        page.lines.extend(list.lines.into_iter().map(|line| {
            let ago = u64::try_from(now.since(line.at).as_millis()).unwrap_or(u64::MAX);
            (shard.0, unix_ms.saturating_sub(ago), line)
        }));
    }

    fn answer(mut self) {
        let silent = self.has_answered.iter().filter(|yes| !**yes).count();
        if silent > 0 {
            self.page.error = format!("{silent} shards did not answer in time");
        }
        self.page.lines.sort_by_key(|(.., line)| line.at);
        let beyond = self.page.lines.len().saturating_sub(self.limit);
        // The newest of all; who follows is given all of what the shards said, which is bounded by what each was asked for.
        if self.is_first && beyond > 0 {
            self.page.lines.drain(..beyond);
            self.page.left_off += beyond as u64;
        }
        let _ = self.reply.send(self.page); // who asked may have gone
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::node::ShownUser;
    use crate::session::{Act, Reason};

    fn line(at: u64) -> DenialLine {
        DenialLine {
            at: Time(at),
            peer: SocketAddr::from(([10, 0, 0, 1], 4711)),
            listener: "l".into(),
            client_id: at.to_string().into(),
            user: ShownUser::Nobody,
            act: Act::Publish,
            topic: "t".into(),
            qos: None,
            retain: false,
            payload_bytes: None,
            reason: Reason::NoRule,
            clause: "",
            rule: "".into(),
        }
    }

    fn list(times: &[u64], next: u64, left_off: u64, lost: u64) -> Option<DenialList> {
        Some(DenialList {
            lines: times.iter().copied().map(line).collect(),
            next,
            left_off,
            lost,
        })
    }

    fn asking(is_first: bool, limit: usize) -> (Asking, oneshot::Receiver<DenialPage>) {
        let (reply, answer) = oneshot::channel();
        let asking = Asking {
            request: 1,
            until: Time(0),
            limit,
            is_first,
            has_answered: vec![false; 3],
            page: DenialPage {
                next: DenialCursor(vec![7, 8, 9]),
                ..DenialPage::default()
            },
            reply,
        };
        (asking, answer)
    }

    #[test]
    fn shards_are_put_in_order_of_time_and_the_newest_are_kept() {
        for (is_first, expected, left_off) in [
            (true, vec!["2", "3", "4"], 5),
            (false, vec!["1", "2", "3", "4"], 4),
        ] {
            let (mut asking, mut answer) = asking(is_first, 3);
            asking.take(ShardId(0), list(&[1, 4], 20, 4, 1), Time(10), 1000);
            asking.take(ShardId(2), list(&[2, 3], 30, 0, 2), Time(10), 1000);
            asking.take(ShardId(2), list(&[2, 3], 30, 0, 2), Time(10), 1000); // said once only
            asking.answer();
            let page = answer.try_recv().expect("an answer");
            let ids: Vec<&str> = page
                .lines
                .iter()
                .map(|(.., line)| &*line.client_id)
                .collect();
            assert_eq!((ids, page.left_off, page.lost), (expected, left_off, 3));
            assert_eq!(
                page.next.to_string(),
                "20.8.30",
                "a silent one is asked again"
            );
            assert_eq!(page.error, "1 shards did not answer in time");
        }
    }

    #[test]
    fn cursors_survive_being_written_out() {
        for text in ["0", "1.2.3", "18446744073709551615"] {
            let cursor: DenialCursor = text.parse().expect("a cursor");
            assert_eq!(cursor.to_string(), text);
        }
        for text in ["", ".", "1.", "-1", "a", "1:2"] {
            assert_eq!(text.parse::<DenialCursor>(), Err(BadCursor), "{text:?}");
        }
    }
}
