//! Every interleaving of the machines, with every crash, power cut, lost or useless answer and late request that a budget of
//! faults allows, against authorization servers of three kinds.
//!
//! The machines are the ones that [`super::drive`] runs. What is modelled is the world around them: a directory whose
//! renames may be undone by a power cut until it is synced, a lock that dies with its holder, requests that arrive late,
//! and the server. Each `Mutant` leaves out one thing and must be found: a check that finds nothing is no check.

mod steps;
mod world;

use std::collections::HashSet;

use test_case::test_case;

use self::world::{Kind, Mind, Next, Process, World};
use super::{Forget, Keep, Need, Outcome, Print, Refresh};

/// What is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    None,
    NoLock,
    NoJournal,
    NoSync,
    NoAdoption,
}

#[derive(Debug)]
struct Broken(#[expect(dead_code, reason = "printed")] &'static str);

type Checked<T> = Result<T, Broken>;

fn require(holds: bool, what: &'static str) -> Checked<()> {
    if holds { Ok(()) } else { Err(Broken(what)) }
}

/// Goes everywhere; says how many states there are.
fn explore(kind: Kind, minds: &[Mind], faults: u8, mutant: Mutant) -> Checked<usize> {
    let mut known: HashSet<World> = HashSet::new();
    let mut waiting = vec![World::new(kind, minds, faults)];
    let refreshes = minds.iter().filter(|mind| matches!(mind, Mind::Refresh(_))).count();
    while let Some(world) = waiting.pop() {
        if !known.insert(world.clone()) {
            continue;
        }
        assert!(known.len() < 20_000_000, "the model grew out of hand");
        let next = world.successors(mutant)?;
        if next.is_empty() {
            let ended = world.processes.iter().all(|p| matches!(p.next, Next::Ended(_) | Next::Dead));
            require(ended, "somebody waits for ever")?;
            if faults == 0 && refreshes == minds.len() {
                require(world.posts == 1, "more than one request for one expiry")?;
                let used =
                    |p: &Process| matches!(p.next, Next::Ended(Some(Outcome::Renewed | Outcome::Adopted)));
                require(world.processes.iter().all(used), "somebody got no token")?;
            }
            world.at_the_end(faults == 0 && !world.has_stranger(), mutant)?;
        }
        waiting.extend(next);
    }
    Ok(known.len())
}

const EXPIRED: Mind = Mind::Refresh(Refresh::EXPIRED);
const REFUSED: Mind = Mind::Refresh(Refresh::REFUSED);

impl Refresh {
    const EXPIRED: Self = Self::at_start(Print::numbered(0), Need::Expiry);
    const REFUSED: Self = Self::at_start(Print::numbered(0), Need::Refused);
}

fn keep() -> Mind {
    Mind::Keep(Keep::default())
}

fn forget() -> Mind {
    Mind::Forget(Forget::default())
}

#[test_case(Kind::Strict)]
#[test_case(Kind::Grace)]
#[test_case(Kind::Fixed)]
fn a14_every_interleaving_and_every_fault(kind: Kind) {
    let casts: [(&[Mind], u8); 9] = [
        (&[EXPIRED], 4),
        (&[EXPIRED, EXPIRED, EXPIRED], 0),
        (&[EXPIRED, REFUSED], 3),
        (&[EXPIRED, REFUSED, EXPIRED], 1),
        (&[REFUSED, keep()], 2),
        (&[EXPIRED, forget()], 2),
        (&[EXPIRED, keep(), forget()], 1),
        (&[REFUSED, Mind::Stranger(0)], 2),
        (&[EXPIRED, REFUSED, Mind::Stranger(0)], 0),
    ];
    for (minds, faults) in casts {
        match explore(kind, minds, faults, Mutant::None) {
            Ok(states) => println!("{kind:?}, {minds:?}, {faults} faults: {states} states"),
            Err(broken) => panic!("{kind:?}, {minds:?}, {faults} faults: {broken:?}"),
        }
    }
}

/// What the check must find.
#[test_case(Mutant::NoLock, 0)]
#[test_case(Mutant::NoJournal, 1)]
#[test_case(Mutant::NoSync, 1)]
#[test_case(Mutant::NoAdoption, 0)]
fn a14_a_machine_that_leaves_something_out_is_found(mutant: Mutant, faults: u8) {
    let found = explore(Kind::Strict, &[EXPIRED, REFUSED], faults, mutant);
    assert!(found.is_err(), "{mutant:?} was not found in {found:?} states");
}
