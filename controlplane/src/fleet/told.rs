//! What a node says of itself: read from messages into bounded values, kept for those who look.
//!
//! Decides nothing about delivery. Everything here comes from a peer: it is cut to its bound or refused.

use foldhash::HashSet;
use sluice_proto::v1;

use crate::domain::GenerationId;

/// Shards of one node.
const SHARDS_MAX: u32 = 1024;
/// Words in `features`, and in `capabilities`.
const WORDS_MAX: usize = 256;
/// Length of such a word, and of a version.
const WORD_BYTES_MAX: usize = 128;
/// Lines of `not_ready`.
const LINES_MAX: usize = 100;
/// Endpoints in trouble; the rest is counted. 10,000 nodes that all have as many with the longest names take 240 MB.
const TROUBLES_MAX: usize = 16;
/// Length of a line that is kept, and of a text in a problem.
const LINE_BYTES_MAX: usize = 500;
/// Bytes of problems kept of one refusal; the rest is counted. 10,000 nodes that all refuse take 160 MiB.
const PROBLEM_BYTES_MAX: usize = 16 << 10;

/// A Hello that cannot be taken; in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadHello(pub &'static str);

/// A message of the stream that not every node takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Ends sessions.
    Kick,
    /// Keeps clients out.
    KeepOut,
    /// Goes out of service.
    Drain,
    /// Lists sessions.
    Sessions,
    /// Says how often rules decided.
    Rules,
    /// Lists recent refusals.
    Denials,
}

impl Capability {
    /// As nodes say it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Kick => "kick",
            Self::KeepOut => "keep_out",
            Self::Drain => "drain",
            Self::Sessions => "sessions",
            Self::Rules => "rules",
            Self::Denials => "denials",
        }
    }
}

/// A Hello, checked.
#[derive(Clone, Debug)]
pub struct Hello {
    /// Of the program.
    pub version: String,
    /// What rows it reads.
    pub features: HashSet<String>,
    /// Shards that will acknowledge.
    pub shards: u32,
    capabilities: HashSet<String>,
}

impl Hello {
    /// Checks its bounds; what the node holds comes beside it, as it was said.
    pub fn read(hello: v1::Hello) -> Result<(Self, Option<v1::GenerationId>), BadHello> {
        if !(1..=SHARDS_MAX).contains(&hello.shards) {
            return Err(BadHello("Hello: `shards` must be 1 to 1024"));
        }
        if hello.version.len() > WORD_BYTES_MAX {
            return Err(BadHello("Hello: `version` is longer than 128 bytes"));
        }
        let fits = |words: &[String]| {
            words.len() <= WORDS_MAX && words.iter().all(|word| word.len() <= WORD_BYTES_MAX)
        };
        if !fits(&hello.features) || !fits(&hello.capabilities) {
            return Err(BadHello(
                "Hello: `features` and `capabilities` have at most 256 words of 128 bytes",
            ));
        }
        let checked = Self {
            version: hello.version,
            features: hello.features.into_iter().collect(),
            shards: hello.shards,
            capabilities: hello.capabilities.into_iter().collect(),
        };
        Ok((checked, hello.held))
    }

    /// Whether it takes such messages.
    pub fn can(&self, capability: Capability) -> bool {
        self.capabilities.contains(capability.word())
    }
}

/// One shard, as it was last told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shard {
    /// What it judges by.
    pub active: Option<GenerationId>,
    /// The other fields of `Heartbeat.Shard`.
    pub sessions: u64,
    /// Total.
    pub messages: u64,
    /// Total.
    pub denials: u64,
    /// Longest turn since the heartbeat before.
    pub turn_max_us: u64,
    /// Bytes that wait for slow peers.
    pub backlog_bytes: u64,
}

/// What was last told; kept when the node is away.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Of the program.
    pub version: String,
    /// What rows it reads, sorted.
    pub features: Vec<String>,
    /// By number. Empty until the node has told what they judge by.
    pub shards: Vec<Shard>,
    /// Takes no connections.
    pub is_draining: bool,
    /// Why it should get no traffic.
    pub not_ready: Vec<String>,
    /// Upstream endpoints.
    pub endpoints: u32,
    /// Of these, taken for healthy.
    pub endpoints_healthy: u32,
    /// Endpoints that clients cannot be sent to.
    pub troubles: Vec<v1::EndpointTrouble>,
    /// How many more there are.
    pub troubles_left_off: u64,
    /// Resident memory.
    pub memory_bytes: u64,
    shard_count: usize,
}

impl Told {
    /// A new stream: what the process before it told is not true of this one.
    pub fn begin(&mut self, hello: &Hello) {
        let mut features: Vec<String> = hello.features.iter().cloned().collect();
        features.sort();
        *self = Self {
            version: hello.version.clone(),
            features,
            shard_count: usize::try_from(hello.shards).unwrap_or_default(),
            ..Self::default()
        };
    }

    /// A heartbeat. Shards beyond those of the Hello are passed over.
    pub fn take(&mut self, heartbeat: v1::Heartbeat) {
        self.shards.resize(self.shard_count, Shard::default());
        for (shard, said) in self.shards.iter_mut().zip(heartbeat.shards) {
            *shard = Shard {
                active: said.active.as_ref().and_then(GenerationId::from_wire),
                sessions: said.sessions,
                messages: said.messages,
                denials: said.denials,
                turn_max_us: said.turn_max_us,
                backlog_bytes: said.backlog_bytes,
            };
        }
        self.is_draining = heartbeat.is_draining;
        self.endpoints = heartbeat.endpoints;
        self.endpoints_healthy = heartbeat.endpoints_healthy;
        self.memory_bytes = heartbeat.memory_bytes;
        let beyond = heartbeat.troubles.len().saturating_sub(TROUBLES_MAX) as u64;
        self.troubles_left_off = heartbeat.troubles_left_off.saturating_add(beyond);
        let troubles = heartbeat.troubles.into_iter().take(TROUBLES_MAX);
        self.troubles = troubles.map(cut_trouble).collect();
        let lines = heartbeat.not_ready.into_iter().take(LINES_MAX);
        self.not_ready = lines.map(cut).collect();
    }

    /// A shard has made a generation its own.
    pub fn acknowledge(&mut self, shard: u32, generation: GenerationId) {
        self.shards.resize(self.shard_count, Shard::default());
        let place = usize::try_from(shard).unwrap_or(usize::MAX);
        if let Some(shard) = self.shards.get_mut(place) {
            shard.active = Some(generation);
        }
    }

    /// What every shard judges by; `None` when they do not agree, or have nothing.
    pub fn active(&self) -> Option<GenerationId> {
        let first = self.shards.first()?.active?;
        let is_same = |shard: &Shard| shard.active == Some(first);
        self.shards.iter().all(is_same).then_some(first)
    }
}

/// Why a generation is not on a node.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Which generation.
    pub generation: GenerationId,
    /// As nodes say it.
    pub reason: v1::reject::Reason,
    /// As many as fit, each cut.
    pub problems: Vec<v1::Problem>,
    /// How many there are more.
    pub left_off: u64,
    /// The program that refused: another one may take it.
    pub version: String,
    /// The same.
    pub features: HashSet<String>,
}

impl Refusal {
    /// What a node that said `hello` answered.
    pub fn read(generation: GenerationId, reject: v1::Reject, hello: &Hello) -> Self {
        let reason = reject.reason();
        let said = reject.problems.len();
        let mut room = PROBLEM_BYTES_MAX;
        let problems: Vec<v1::Problem> = reject
            .problems
            .into_iter()
            .map(cut_problem)
            .map_while(|problem| {
                let row = problem.row.as_ref().map_or(0, |row| row.name.len());
                let weight = 32 + row + problem.field.len() + problem.message.len();
                room = room.checked_sub(weight)?;
                Some(problem)
            })
            .collect();
        let cut_off = u64::try_from(said - problems.len()).unwrap_or(u64::MAX);
        Self {
            generation,
            reason,
            left_off: reject.left_off.saturating_add(cut_off),
            problems,
            version: hello.version.clone(),
            features: hello.features.clone(),
        }
    }

    /// A generation that needs what a node lacks; nothing is sent.
    pub fn lacking(generation: GenerationId, mut lacks: Vec<&str>, hello: &Hello) -> Self {
        lacks.sort_unstable();
        let problem = |feature: &&str| v1::Problem {
            row: None,
            field: String::new(),
            message: format!(
                "the generation needs the feature `{feature}`, which this node lacks: update the node"
            ),
        };
        let reject = v1::Reject {
            generation: None,
            reason: v1::reject::Reason::Features.into(),
            problems: lacks.iter().map(problem).collect(),
            left_off: 0,
        };
        Self::read(generation, reject, hello)
    }
}

fn cut_problem(problem: v1::Problem) -> v1::Problem {
    v1::Problem {
        row: problem.row.map(|row| v1::RowKey {
            kind: row.kind,
            name: cut(row.name),
        }),
        field: cut(problem.field),
        message: cut(problem.message),
    }
}

fn cut_trouble(trouble: v1::EndpointTrouble) -> v1::EndpointTrouble {
    v1::EndpointTrouble {
        upstream: cut(trouble.upstream),
        endpoint: cut(trouble.endpoint),
        address: cut(trouble.address),
        ..trouble
    }
}

/// At most [`LINE_BYTES_MAX`] bytes, whole characters.
pub(super) fn cut(mut text: String) -> String {
    if text.len() > LINE_BYTES_MAX {
        text.truncate(text.floor_char_boundary(LINE_BYTES_MAX));
        text.shrink_to_fit();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> v1::Hello {
        v1::Hello {
            shards: 2,
            ..v1::Hello::default()
        }
    }

    #[test]
    fn a_hello_beyond_its_bounds_is_refused() {
        let word = "x".repeat(WORD_BYTES_MAX + 1);
        let cases = [
            v1::Hello {
                shards: 0,
                ..hello()
            },
            v1::Hello {
                shards: SHARDS_MAX + 1,
                ..hello()
            },
            v1::Hello {
                version: word.clone(),
                ..hello()
            },
            v1::Hello {
                features: vec![word.clone()],
                ..hello()
            },
            v1::Hello {
                capabilities: vec![word],
                ..hello()
            },
            v1::Hello {
                features: vec![String::new(); WORDS_MAX + 1],
                ..hello()
            },
        ];
        for case in cases {
            assert!(Hello::read(case.clone()).is_err(), "{case:?}");
        }
        let good = v1::Hello {
            shards: SHARDS_MAX,
            capabilities: vec!["kick".into()],
            ..hello()
        };
        let (good, held) = Hello::read(good).expect("within the bounds");
        assert!(good.can(Capability::Kick) && !good.can(Capability::Drain) && held.is_none());
    }

    #[test]
    fn what_a_heartbeat_says_is_cut_to_its_bounds() {
        let (hello, _) = Hello::read(hello()).unwrap();
        let mut told = Told::default();
        told.begin(&hello);
        assert!(told.shards.is_empty(), "not told yet");
        told.take(v1::Heartbeat {
            shards: vec![
                v1::heartbeat::Shard {
                    sessions: 7,
                    ..Default::default()
                };
                5
            ],
            not_ready: vec!["ä".repeat(1000); 200],
            troubles: vec![
                v1::EndpointTrouble {
                    endpoint: "e".repeat(9000),
                    ..Default::default()
                };
                50
            ],
            troubles_left_off: 7,
            ..v1::Heartbeat::default()
        });
        assert_eq!(told.shards.len(), 2);
        assert_eq!(told.not_ready.len(), LINES_MAX);
        assert!(
            told.not_ready
                .iter()
                .all(|line| line.len() <= LINE_BYTES_MAX)
        );
        let troubles = (told.troubles.len(), told.troubles_left_off);
        assert_eq!(troubles, (TROUBLES_MAX, 41));
        let endpoint = &told.troubles[0].endpoint;
        assert!(endpoint.len() <= LINE_BYTES_MAX);
        told.acknowledge(u32::MAX, GenerationId::from_wire(&wire(1)).unwrap());
        assert_eq!(told.active(), None);
    }

    #[test]
    fn a_refusal_keeps_what_fits_and_counts_the_rest() {
        let (hello, _) = Hello::read(hello()).unwrap();
        let problem = v1::Problem {
            message: "m".repeat(5000),
            ..v1::Problem::default()
        };
        let reject = v1::Reject {
            problems: vec![problem; 1000],
            left_off: 5,
            ..Default::default()
        };
        let id = GenerationId::from_wire(&wire(1)).unwrap();
        let refusal = Refusal::read(id, reject, &hello);
        assert!(!refusal.problems.is_empty() && refusal.problems.len() < 40);
        let kept = u64::try_from(refusal.problems.len()).unwrap();
        assert_eq!(refusal.left_off + kept, 1005);
    }

    fn wire(number: u64) -> v1::GenerationId {
        v1::GenerationId {
            store: vec![1; 16],
            number,
            digest: vec![2; 32],
        }
    }
}
