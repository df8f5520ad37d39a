//! Which endpoint a session goes to. Owns the three orders of preference and nothing else: whether an endpoint may be
//! dialled at all is asked of the table by [`super::dial`].
//!
//! - **Client id**: rendezvous hashing, so that a client finds its MQTT session again, and the loss of an endpoint moves
//!   only the clients it had. Load is bounded: an endpoint with a quarter more connections than its share is passed over.
//! - **Round robin** and **least connections** need upstreams that share their sessions.

use sluice_policy::Balance;

use crate::node::ResolvedEndpoint;

/// What an order of preference looks at.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Position in the directory's list.
    pub index: usize,
    /// Seed of its rendezvous scores.
    pub identity: u64,
    /// Connections open through this node.
    pub open: u32,
    /// False exactly when the last active health check failed: taken only when nothing healthy is left, because a wrong
    /// health check must not take a whole service down.
    pub healthy: bool,
    /// It failed a moment ago and has not answered a CONNECT since. Least connections passes it over while others are left:
    /// where nothing stays connected there are always the fewest.
    pub failed_lately: bool,
}

/// What the choice depends on besides the candidates.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// The order of preference.
    pub balance: Balance,
    /// Hash of the client id.
    pub key: u64,
    /// Counts dials of this shard to this upstream; ties and round robin go by it.
    pub turn: u64,
}

/// The most preferred candidate; `None` when there is none. Linear, and called once per attempt.
pub fn choose(question: Question, candidates: &[Candidate]) -> Option<Candidate> {
    let cap = cap(candidates);
    candidates.iter().copied().min_by_key(|candidate| {
        (
            !candidate.healthy,
            rank(question, *candidate, cap, candidates.len()),
        )
    })
}

/// The endpoint that a client id belongs to when all are well, whatever their load; tells a failover from a first choice.
pub fn home(key: u64, endpoints: &[ResolvedEndpoint]) -> Option<usize> {
    (0..endpoints.len()).max_by_key(|index| endpoints.get(*index).map(|e| score(key, e.identity)))
}

fn rank(question: Question, candidate: Candidate, cap: u32, count: usize) -> (bool, u64, u64) {
    let turn = rotated(candidate.index, question.turn, count);
    match question.balance {
        Balance::ClientId => (
            false,
            u64::from(candidate.open >= cap),
            u64::MAX - score(question.key, candidate.identity),
        ),
        Balance::RoundRobin => (false, turn, 0),
        Balance::LeastConnections => (candidate.failed_lately, u64::from(candidate.open), turn),
    }
}

/// One and a quarter times the fair share after one more connection, rounded up.
fn cap(candidates: &[Candidate]) -> u32 {
    let total: u64 = candidates.iter().map(|c| u64::from(c.open)).sum();
    let count = candidates.len().max(1) as u64;
    u32::try_from(((total + 1) * 5).div_ceil(count * 4)).unwrap_or(u32::MAX)
}

fn rotated(index: usize, turn: u64, count: usize) -> u64 {
    let count = count.max(1) as u64;
    (index as u64 + count - turn % count) % count
}

/// Mixes client and endpoint (the finalizer of SplitMix64 over their sum by an odd constant).
fn score(key: u64, identity: u64) -> u64 {
    let mut z = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ identity;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(open: &[u32]) -> Vec<Candidate> {
        open.iter()
            .enumerate()
            .map(|(index, &open)| Candidate {
                index,
                identity: score(index as u64, 99),
                open,
                healthy: true,
                failed_lately: false,
            })
            .collect()
    }

    fn pick(balance: Balance, key: u64, turn: u64, candidates: &[Candidate]) -> usize {
        choose(Question { balance, key, turn }, candidates)
            .unwrap()
            .index
    }

    #[test]
    fn no_candidate_is_no_choice() {
        let question = Question {
            balance: Balance::ClientId,
            key: 1,
            turn: 0,
        };
        assert!(choose(question, &[]).is_none());
    }

    #[test]
    fn losing_an_endpoint_moves_only_its_own_clients() {
        let all = candidates(&[0, 0, 0, 0]);
        let without: Vec<_> = all.iter().copied().filter(|c| c.index != 2).collect();
        let mut moved = 0;
        for key in 0..4000 {
            let before = pick(Balance::ClientId, key, 0, &all);
            let after = pick(Balance::ClientId, key, 0, &without);
            if before == 2 {
                moved += 1;
            } else {
                assert_eq!(before, after, "client {key}");
            }
        }
        assert!(
            (800..1200).contains(&moved),
            "a quarter of the clients: {moved}"
        );
    }

    #[test]
    fn load_is_bounded_at_a_quarter_over_the_fair_share() {
        let mut open = vec![0_u32; 5];
        for key in 0..5000 {
            let chosen = pick(Balance::ClientId, key % 3, 0, &candidates(&open)); // three very busy clients
            open[chosen] += 1;
        }
        let max = *open.iter().max().unwrap();
        assert!(max <= 5000 * 5 / (4 * 5) + 1, "{open:?}");
    }

    #[test]
    fn round_robin_goes_round_and_least_connections_takes_the_least() {
        let even = candidates(&[5, 5, 5]);
        let order: Vec<_> = (0..6)
            .map(|turn| pick(Balance::RoundRobin, 0, turn, &even))
            .collect();
        assert_eq!(order, [0, 1, 2, 0, 1, 2]);
        let cases: [(&[u32], u64, usize); 3] =
            [(&[3, 1, 2], 0, 1), (&[1, 1, 1], 2, 2), (&[0, 9, 0], 1, 2)];
        for (open, turn, expected) in cases {
            assert_eq!(
                pick(Balance::LeastConnections, 0, turn, &candidates(open)),
                expected,
                "{open:?}"
            );
        }
    }

    #[test]
    fn least_connections_does_not_prefer_what_has_just_failed() {
        for (balance, expected) in [(Balance::LeastConnections, 1), (Balance::RoundRobin, 0)] {
            let mut some = candidates(&[0, 9]);
            some[0].failed_lately = true;
            assert_eq!(pick(balance, 0, 0, &some), expected, "{balance:?}");
            some[1].failed_lately = true;
            assert_eq!(pick(balance, 0, 0, &some), 0, "{balance:?}: both have");
        }
    }

    #[test]
    fn the_unhealthy_are_taken_only_when_nothing_else_is_left() {
        for balance in [
            Balance::ClientId,
            Balance::RoundRobin,
            Balance::LeastConnections,
        ] {
            let mut some = candidates(&[0, 0, 7]);
            some[0].healthy = false;
            some[1].healthy = false;
            assert_eq!(pick(balance, 3, 0, &some), 2, "{balance:?}");
            some[2].healthy = false;
            assert!(
                choose(
                    Question {
                        balance,
                        key: 3,
                        turn: 0
                    },
                    &some
                )
                .is_some()
            );
        }
    }
}
