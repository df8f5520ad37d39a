//! The agent's decisions, as tables, and a random life against a plain model of a control plane and a control thread.

#![allow(clippy::wildcard_enum_match_arm)] // a test looks for one kind of message

use proptest::prelude::*;
use sluice_policy::fleet::Change;
use sluice_proto::v1::row::Kind;

use super::*;

fn rule(name: u8, order: i64) -> v1::Row {
    v1::Row {
        name: format!("r{name}"),
        kind: Some(Kind::Rule(v1::Rule {
            order: Some(order),
            ..v1::Rule::default()
        })),
        ..v1::Row::default()
    }
}

fn rows(orders: &[i64]) -> Inventory {
    let rows = orders.iter().zip(0_u8..);
    let rows: Vec<v1::Row> = rows.map(|(order, name)| rule(name, *order)).collect();
    Inventory::from_messages(&rows).expect("good rows")
}

fn held(number: u64, rows: &Inventory) -> Held {
    Held {
        id: v1::GenerationId {
            store: vec![1; 16],
            number,
            digest: rows.digest().to_vec(),
        },
        rows: rows.clone(),
    }
}

fn connected() -> Agent {
    let mut agent = Agent::new("n".into(), 2);
    agent.connected();
    agent
}

/// Sends the changes as chunks and carries out what needs no thread; what is left to do.
fn deliver(
    agent: &mut Agent,
    id: &v1::GenerationId,
    base: Option<&v1::GenerationId>,
    changes: Vec<Change>,
) -> Option<Output> {
    let delivery = Delivery {
        generation: id.clone(),
        base: base.cloned(),
        changes,
    };
    let mut last = None;
    for chunk in delivery.into_chunks() {
        assert!(last.is_none(), "nothing is done before the last chunk");
        last = agent.take(to_node::Message::Generation(chunk));
    }
    match last {
        Some(Output::Prepare { base, delivery }) => agent.prepared(prepare(&base, delivery)),
        other => other,
    }
}

fn offered(output: Option<Output>) -> Held {
    match output {
        Some(Output::Offer(held)) => held,
        other => panic!("no offer: {other:?}"),
    }
}

fn reason(output: Option<Output>) -> Reason {
    match output {
        Some(Output::Send(from_node::Message::Reject(reject))) => reject.reason(),
        other => panic!("not refused: {other:?}"),
    }
}

fn acks(messages: &[from_node::Message]) -> Vec<(u64, u32)> {
    let acks = messages.iter().map(|message| match message {
        from_node::Message::Ack(ack) => {
            (ack.generation.as_ref().map_or(0, |id| id.number), ack.shard)
        }
        other => panic!("{other:?}"),
    });
    acks.collect()
}

#[test]
fn a_refusal_that_nobody_heard_is_made_again_when_the_generation_comes_again() {
    let (mut agent, rows) = (connected(), rows(&[1, 2]));
    let one = held(1, &rows);
    let changes = || Inventory::default().changes_to(&rows);
    let refusal = || Refusal::one(Reason::Invalid, whole("it is wrong"));
    let offer = offered(deliver(&mut agent, &one.id, None, changes()));
    agent.disconnected();
    assert!(agent.answered(offer, Some(Err(refusal()))).is_none());
    agent.connected();
    let again = offered(deliver(&mut agent, &one.id, None, changes()));
    assert_eq!(
        reason(agent.answered(again, Some(Err(refusal())))),
        Reason::Invalid
    );
    // One that is still at work when the stream is new is heard there, and once.
    let offer = offered(deliver(&mut agent, &one.id, None, changes()));
    agent.disconnected();
    agent.connected();
    assert!(deliver(&mut agent, &one.id, None, changes()).is_none());
    assert_eq!(
        reason(agent.answered(offer, Some(Err(refusal())))),
        Reason::Invalid
    );
}

#[test]
fn a_generation_is_held_once_it_is_swapped_in_and_not_before() {
    let (mut agent, first) = (connected(), rows(&[1, 2]));
    let one = held(1, &first);
    let offer = offered(deliver(
        &mut agent,
        &one.id,
        None,
        Inventory::default().changes_to(&first),
    ));
    assert_eq!(agent.held(), None);
    let twice = deliver(
        &mut agent,
        &one.id,
        None,
        Inventory::default().changes_to(&first),
    );
    assert!(twice.is_none(), "at work already");
    assert!(matches!(
        agent.answered(offer, Some(Ok(5))),
        Some(Output::Keep(_))
    ));
    assert_eq!(agent.held(), Some(&one.id));
    assert_eq!(acks(&agent.acknowledged(&[None, Some(5)])), [(1, 1)]);
    assert_eq!(acks(&agent.acknowledged(&[Some(5), Some(5)])), [(1, 0)]);
    assert!(
        agent.acknowledged(&[Some(5), Some(5)]).is_empty(),
        "said once"
    );
    // A control plane that says it again did not hear.
    let again = deliver(
        &mut agent,
        &one.id,
        None,
        Inventory::default().changes_to(&first),
    );
    assert!(again.is_none());
    assert_eq!(
        acks(&agent.acknowledged(&[Some(5), Some(5)])),
        [(1, 0), (1, 1)]
    );
}

#[test]
fn changes_are_put_to_what_is_held_or_on_its_way_and_to_nothing_else() {
    let (mut agent, first, second) = (connected(), rows(&[1, 2]), rows(&[1, 9]));
    let (one, two, three) = (
        held(1, &first),
        held(2, &second),
        held(3, &rows(&[1, 9, 9])),
    );
    let whole = Inventory::default().changes_to(&first);
    let offer = offered(deliver(&mut agent, &one.id, None, whole));
    let unknown = deliver(
        &mut agent,
        &three.id,
        Some(&two.id),
        second.changes_to(&three.rows),
    );
    assert_eq!(reason(unknown), Reason::BaseUnknown);
    let on_its_way = deliver(
        &mut agent,
        &two.id,
        Some(&one.id),
        first.changes_to(&second),
    );
    let second_offer = offered(on_its_way);
    assert_eq!(second_offer.rows.digest(), second.digest());
    agent.answered(offer, Some(Ok(1)));
    assert_eq!(
        agent.held(),
        Some(&one.id),
        "the newer one is still compiling"
    );
    let refusal = Refusal::one(Reason::Invalid, whole_problem());
    assert_eq!(
        reason(agent.answered(second_offer, Some(Err(refusal)))),
        Reason::Invalid
    );
    assert_eq!(agent.held(), Some(&one.id), "the old one stays");
    let wrong = deliver(
        &mut agent,
        &three.id,
        Some(&one.id),
        first.changes_to(&second),
    );
    assert_eq!(reason(wrong), Reason::Digest);
}

fn whole_problem() -> v1::Problem {
    whole("no")
}

#[test]
fn one_that_a_newer_one_replaced_is_answered_by_nothing() {
    let (mut agent, first) = (connected(), rows(&[1]));
    let offer = offered(deliver(
        &mut agent,
        &held(1, &first).id,
        None,
        Inventory::default().changes_to(&first),
    ));
    let second = rows(&[2]);
    let newer = offered(deliver(
        &mut agent,
        &held(2, &second).id,
        None,
        Inventory::default().changes_to(&second),
    ));
    assert!(agent.answered(offer, None).is_none());
    assert_eq!(agent.held(), None);
    assert!(agent.answered(newer, Some(Ok(1))).is_some());
}

#[test]
fn a_stream_that_broke_in_mid_generation_leaves_nothing_behind() {
    let mut agent = connected();
    let big: Vec<v1::Row> = (0..3)
        .map(|name| {
            let mut row = rule(name, 1);
            if let Some(Kind::Rule(rule)) = &mut row.kind {
                rule.topics = vec!["x".repeat(1 << 20)];
            }
            row
        })
        .collect();
    let rows = Inventory::from_messages(&big).expect("rows");
    let delivery = Delivery {
        generation: held(1, &rows).id,
        base: None,
        changes: Inventory::default().changes_to(&rows),
    };
    let chunks: Vec<v1::GenerationChunk> = delivery.into_chunks().collect();
    assert!(
        agent
            .take(to_node::Message::Generation(chunks[0].clone()))
            .is_none()
    );
    agent.disconnected();
    match agent.connected() {
        from_node::Message::Hello(hello) => assert_eq!(hello.held, None),
        other => panic!("{other:?}"),
    }
    let output = agent.take(to_node::Message::Generation(chunks[1].clone()));
    assert_eq!(reason(output), Reason::Digest);
}

#[test]
fn nothing_is_said_while_there_is_nobody_to_hear_it() {
    let mut agent = Agent::new("n".into(), 1);
    let first = held(1, &rows(&[1]));
    assert!(matches!(agent.begin_with(first.clone()), Output::Offer(_)));
    agent.answered(first.clone(), Some(Ok(1)));
    assert!(agent.acknowledged(&[Some(1)]).is_empty());
    match agent.connected() {
        from_node::Message::Hello(hello) => assert_eq!(hello.held, Some(first.id.clone())),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        agent.generation(Some(1)),
        Some(&first.id),
        "the heartbeat says it"
    );
    assert!(
        agent.acknowledged(&[Some(1)]).is_empty(),
        "and once is enough"
    );
}

#[test]
fn a_kick_of_everyone_is_refused() {
    let output = connected().take(to_node::Message::Kick(v1::Kick {
        request: 4,
        who: None,
        keep_out_ms: None,
    }));
    match output {
        Some(Output::Send(from_node::Message::Done(done))) => {
            assert_eq!(done.request, 4);
            assert!(!done.error.is_empty());
        }
        other => panic!("{other:?}"),
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Release these orders, on the base of what the node said it holds or of nothing.
    Deliver { orders: Vec<i64>, is_whole: bool },
    /// The control thread answers the oldest offer: taken, or refused.
    Answer { is_good: bool },
    /// A shard moves on to what was swapped in last.
    Acknowledge { shard: usize },
    /// The stream breaks and comes back.
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (prop::collection::vec(0_i64..4, 0..6), any::<bool>())
            .prop_map(|(orders, is_whole)| Step::Deliver { orders, is_whole }),
        any::<bool>().prop_map(|is_good| Step::Answer { is_good }),
        (0_usize..2).prop_map(|shard| Step::Acknowledge { shard }),
        Just(Step::Reconnect),
    ]
}

proptest! {
    // Every life hashes thousands of buckets, without optimisation.
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever comes in whatever order: what is held is what was swapped in last, with the rows that were released under
    /// that number, and no shard is said to have acknowledged what it has not.
    #[test]
    fn random_lives_agree_with_the_model(steps in prop::collection::vec(step(), 1..60)) {
        let mut agent = connected();
        let mut released: Vec<Held> = Vec::new();
        let mut offers: VecDeque<Held> = VecDeque::new();
        let (mut swapped, mut own_number): (Option<(u64, Held)>, u64) = (None, 0);
        let mut shards: Vec<Option<u64>> = vec![None; 2];
        let mut fleet_of_own: Vec<u64> = vec![0];
        for step in steps {
            match step {
                Step::Deliver { orders, is_whole } => {
                    let next = held(released.len() as u64 + 1, &rows(&orders));
                    released.push(next.clone());
                    let base = swapped.as_ref().filter(|_| !is_whole).map(|(_, held)| held.clone());
                    let from = base.as_ref().map(|held| held.rows.clone()).unwrap_or_default();
                    let changes = from.changes_to(&next.rows);
                    let output = deliver(&mut agent, &next.id, base.as_ref().map(|held| &held.id), changes);
                    let offer = offered(output);
                    prop_assert_eq!(offer.rows.digest(), next.rows.digest());
                    offers.push_back(offer);
                }
                Step::Answer { is_good } => {
                    let Some(offer) = offers.pop_front() else { continue };
                    if is_good {
                        own_number += 1;
                        fleet_of_own.push(offer.id.number);
                        swapped = Some((own_number, offer.clone()));
                        agent.answered(offer, Some(Ok(own_number)));
                    } else {
                        let refusal = Refusal::one(Reason::Invalid, whole_problem());
                        prop_assert_eq!(reason(agent.answered(offer, Some(Err(refusal)))), Reason::Invalid);
                    }
                }
                Step::Acknowledge { shard } => shards[shard] = swapped.as_ref().map(|(own, _)| *own),
                Step::Reconnect => {
                    agent.disconnected();
                    agent.connected();
                }
            }
            let said = acks(&agent.acknowledged(&shards));
            for (generation, shard) in said {
                let own = shards[shard as usize].expect("it has one") as usize;
                prop_assert_eq!(fleet_of_own[own], generation);
            }
            prop_assert_eq!(agent.held(), swapped.as_ref().map(|(_, held)| &held.id));
            for own in shards.iter().flatten() {
                let number = agent.generation(Some(*own)).map(|id| id.number);
                prop_assert_eq!(number, Some(fleet_of_own[*own as usize]));
            }
            prop_assert!(agent.releases.len() <= RELEASES_MAX);
        }
    }
}
