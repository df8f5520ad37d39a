//! Topics and policies by which a message judged by a mix of two generations is seen at the broker.
//!
//! There are two policies, and devices publish to four topics in turn, their lanes:
//!
//! | lane | policy A | policy B |
//! |---|---|---|
//! | `always` | allowed to group `a` | allowed to group `b` |
//! | `never` | allowed to group `b` | allowed to group `a` |
//! | `left` | allowed | no rule |
//! | `right` | no rule | allowed |
//!
//! A device is in group `a` under A and in group `b` under B. So under either policy `always` passes and `never` does not;
//! the group of one with the rules of the other turns both around. Rules stand at other places in the two, so that a rule
//! number of one means another rule in the other. And under one policy exactly one of `left` and `right` passes: of the two
//! messages with one number both or neither arrive only where a change came between them, at most once for each change,
//! and who is judged by the old policy again after the new one turns more often than there were changes.

use std::fmt::Write as _;

/// A topic of each device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Passes under both.
    Always,
    /// Passes under A.
    Left,
    /// Passes under B.
    Right,
    /// Passes under neither.
    Never,
}

impl Lane {
    /// In the order sent.
    pub const ALL: [Self; 4] = [Self::Always, Self::Left, Self::Right, Self::Never];

    fn of(sender: u32) -> (Self, usize) {
        let lane = match sender % 4 {
            0 => Self::Always,
            1 => Self::Left,
            2 => Self::Right,
            _ => Self::Never,
        };
        (lane, sender as usize / 4)
    }

    /// Its topic for a device.
    pub fn topic(self, device: u32) -> String {
        let name = match self {
            Self::Always => "always",
            Self::Left => "left",
            Self::Right => "right",
            Self::Never => "never",
        };
        format!("churn/{device}/{name}")
    }
}

/// Policy A (`is_b` false) or B, with so many further rules that nobody uses.
pub fn policy(is_b: bool, listen: &str, upstream: &str, rules: u32) -> String {
    let (own, other, turn) = if is_b {
        ("b", "a", "right")
    } else {
        ("a", "b", "left")
    };
    let mut text = format!(
        "listeners:\n  - name: devices\n    address: {listen}\n    upstream: broker\n    anonymous: {{ group: {own} }}\n    \
         limits: {{ connections_per_address_max: unlimited }}\n\
         upstreams:\n  - {{ name: broker, endpoints: [\"{upstream}\"] }}\n\
         groups:\n  - {{ name: a }}\n  - {{ name: b }}\non_deny: drop\n\
         rules:\n  - {{ name: connect, who: {{ groups: [a, b] }}, actions: [connect], decision: allow }}\n"
    );
    let mut allow = |name: &str, who: &str, topic: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "  - {{ name: {name}, who: {{ groups: [{who}] }}, actions: [publish], topics: [{topic}], decision: allow }}"
        );
    };
    let mut lanes = vec![
        ("always", own, "churn/+/always".to_owned()),
        ("never", other, "churn/+/never".to_owned()),
        (turn, "a, b", format!("churn/+/{turn}")),
    ];
    if is_b {
        lanes.reverse();
    }
    // In B the filling comes first, so that every place is another.
    let filling = |allow: &mut dyn FnMut(&str, &str, &str)| {
        for rule in 0..rules {
            allow(&format!("r{rule}"), "a, b", &format!("filling/{rule}/x"));
        }
    };
    if is_b {
        filling(&mut allow);
    }
    for (name, who, topic) in &lanes {
        allow(name, who, topic);
    }
    if !is_b {
        filling(&mut allow);
    }
    text
}

/// What arrived, device by device.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    devices: Vec<Device>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Device {
    /// On `always`.
    always: u32,
    /// On `never`.
    never: u32,
    /// On `left` or `right` last.
    last: Option<(Side, u32)>,
    /// Arrivals on the other side than the one before.
    turns: u32,
    /// Pairs of which both arrived, or neither.
    torn: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

/// What a ledger shows when it is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Messages on `always` that did not arrive.
    pub lost: u64,
    /// Messages on `never` that arrived.
    pub mixed: u64,
    /// Pairs torn beyond one for each change.
    pub torn: u64,
    /// The other torn pairs.
    pub torn_excused: u64,
    /// Turns beyond one for each change.
    pub turned: u64,
    /// Changes that the device that saw fewest saw.
    pub turns_least: u64,
}

impl Ledger {
    /// Of so many devices; nothing arrived yet.
    pub fn new(devices: u32) -> Self {
        Self {
            devices: vec![Device::default(); devices as usize],
        }
    }

    /// A message arrived.
    pub fn note(&mut self, sender: u32, sequence: u32) {
        let (lane, device) = Lane::of(sender);
        let Some(device) = self.devices.get_mut(device) else {
            return;
        };
        match lane {
            Lane::Always => device.always += 1,
            Lane::Left => device.side(Side::Left, sequence),
            Lane::Right => device.side(Side::Right, sequence),
            Lane::Never => device.never += 1,
        }
    }

    /// What is shown after each device sent so many messages on each lane, and the policy changed so often meanwhile.
    pub fn findings(&self, sent: impl Fn(usize) -> u32, changes: u32) -> Findings {
        let mut findings = Findings {
            turns_least: if self.devices.is_empty() { 0 } else { u64::MAX },
            ..Findings::default()
        };
        for (index, device) in self.devices.iter().enumerate() {
            let sent = sent(index);
            let next = device.last.map_or(0, |(_, sequence)| sequence + 1);
            let torn = device.torn + sent.saturating_sub(next);
            findings.lost += u64::from(sent.saturating_sub(device.always));
            findings.mixed += u64::from(device.never);
            findings.torn += u64::from(torn.saturating_sub(changes));
            findings.torn_excused += u64::from(torn.min(changes));
            findings.turned += u64::from(device.turns.saturating_sub(changes));
            findings.turns_least = findings.turns_least.min(device.turns.into());
        }
        findings
    }
}

impl Device {
    fn side(&mut self, side: Side, sequence: u32) {
        let next = self.last.map_or(0, |(_, last)| last + 1);
        if sequence < next {
            self.torn += 1; // both
        }
        self.torn += sequence.saturating_sub(next); // neither
        if self.last.is_some_and(|(last, _)| last != side) {
            self.turns += 1;
        }
        self.last = Some((side, sequence.max(next.saturating_sub(1))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One device; `passes` says for each round which lanes pass.
    fn ledger(rounds: &[&[Lane]]) -> Ledger {
        let mut ledger = Ledger::new(1);
        for (sequence, passes) in (0u32..).zip(rounds) {
            for (sender, lane) in (0u32..).zip(Lane::ALL) {
                if passes.contains(&lane) {
                    ledger.note(sender, sequence);
                }
            }
        }
        ledger
    }

    const A: &[Lane] = &[Lane::Always, Lane::Left];
    const B: &[Lane] = &[Lane::Always, Lane::Right];
    const BOTH: &[Lane] = &[Lane::Always, Lane::Left, Lane::Right];
    const NEITHER: &[Lane] = &[Lane::Always];

    #[test]
    fn what_whole_generations_do_is_no_violation() {
        let none = Findings::default();
        for (rounds, changes) in [
            (&[A, A, A][..], 0),
            (&[A, B, B, A], 2),
            (&[A, BOTH, B, B], 1),
            (&[B, NEITHER, A, A], 1),
            (&[A, NEITHER], 1),
            (&[NEITHER, B], 1),
        ] {
            let found = ledger(rounds).findings(|_| rounds.len() as u32, changes);
            assert!(found.torn_excused <= u64::from(changes));
            let found = Findings {
                turns_least: 0,
                torn_excused: 0,
                ..found
            };
            assert_eq!(found, none, "{rounds:?}");
        }
    }

    #[test]
    fn what_only_a_mix_or_a_loss_does_is_seen() {
        const MIXED: &[Lane] = &[Lane::Left, Lane::Never];
        let found = ledger(&[A, MIXED, B]).findings(|_| 3, 1);
        assert_eq!((found.lost, found.mixed), (1, 1));
        let found = ledger(&[A, B, A, B]).findings(|_| 4, 1);
        assert_eq!((found.turned, found.turns_least), (2, 3), "back and forth");
        let found = ledger(&[A, BOTH, NEITHER, A]).findings(|_| 4, 1);
        assert_eq!((found.torn, found.torn_excused), (1, 1));
        let found = ledger(&[A]).findings(|_| 3, 1);
        assert_eq!((found.lost, found.torn), (2, 1), "the end is missing");
    }

    #[test]
    fn both_policies_compile_and_say_what_the_table_says() {
        for is_b in [false, true] {
            let text = policy(is_b, "127.0.0.1:0", "tcp://127.0.0.1:1", 3);
            let rows = sluice_policy::parse(&text, "policy").unwrap();
            assert_eq!(rows.rules.len(), 7);
            sluice_policy::compile(&text, "policy", sluice_policy::Generation(1), None).unwrap();
        }
    }
}
