//! Why none of several endpoints was reached, told as one fault.

use crate::fault::{Fault, Hop};

/// Why no endpoint was reached.
#[derive(Default)]
pub(super) struct Faults {
    /// That somebody else answered says more than that nobody did elsewhere.
    telling: Option<Fault>,
    others: Vec<Fault>,
}

impl Faults {
    pub(super) fn add(&mut self, fault: Fault) {
        match fault {
            Fault::WrongPeer(_) | Fault::OtherProtocol { .. } | Fault::RefusedByPeer(_) => self.telling = Some(fault),
            fault => self.others.push(fault),
        }
    }

    pub(super) fn into_one(mut self, hop: Hop, to: &str) -> Fault {
        if let Some(telling) = self.telling {
            return telling;
        }
        if self.others.len() == 1 {
            return self.others.remove(0);
        }
        let mut reasons: Vec<String> = self.others.iter().take(SHOWN).map(ToString::to_string).collect();
        if self.others.len() > SHOWN {
            reasons.push(format!("and {} more", self.others.len() - SHOWN));
        }
        let reason = reasons.join("; ");
        Fault::Unreachable { hop, to: to.to_owned(), reason }
    }
}

/// How many endpoints are told of.
const SHOWN: usize = 10;
