//! The last denials, with what the caller is not told, for the operator: `/decisions` on the admin endpoint.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// The last denials, and what audit let pass.
pub(crate) struct Decisions {
    /// Begins each ID, so that two sidecars, or one before and after a restart, do not give the same.
    prefix: u32,
    next: AtomicU64,
    kept: Mutex<VecDeque<Kept>>,
}

/// What was denied, to whom, and why.
pub(crate) struct Denial {
    /// The listener that it was met at.
    pub(crate) listener: Arc<str>,
    /// The caller.
    pub(crate) from: String,
    /// Ourselves.
    pub(crate) to: String,
    /// The request, fit for a log.
    pub(crate) request: String,
    /// `deny` or `audit`.
    pub(crate) verdict: &'static str,
    /// The rule that denied it.
    pub(crate) rule: Option<Arc<str>>,
    /// Why, in one line.
    pub(crate) explanation: String,
}

struct Kept {
    id: Arc<str>,
    /// Unix time in seconds.
    time: u64,
    denial: Denial,
}

impl Decisions {
    pub(crate) fn new() -> Self {
        // Enough to tell processes apart; nothing depends on an ID being hard to guess.
        let seed = RandomState::new().hash_one(std::process::id()).to_le_bytes();
        let prefix = u32::from_le_bytes([seed[0], seed[1], seed[2], seed[3]]);
        Self { prefix, next: AtomicU64::new(1), kept: Mutex::new(VecDeque::with_capacity(KEPT)) }
    }

    /// A new ID for a denial, whether or not it is recorded.
    pub(crate) fn id(&self) -> Arc<str> {
        format!("{:08x}-{}", self.prefix, self.next.fetch_add(1, Ordering::Relaxed)).into()
    }

    /// Keeps a denial and logs it.
    pub(crate) fn record(&self, id: Arc<str>, denial: Denial) {
        tracing::warn!(
            decision = %id, listener = %denial.listener, from = %denial.from, to = %denial.to,
            request = %denial.request, verdict = denial.verdict, rule = denial.rule.as_deref().unwrap_or("none"),
            "{}", denial.explanation
        );
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(Kept { id, time, denial });
    }

    /// All that are kept, the newest first.
    pub(crate) fn to_json(&self) -> Value {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let one = |Kept { id, time, denial }: &Kept| {
            json!({
                "id": &**id,
                "time": time,
                "listener": &*denial.listener,
                "from": denial.from,
                "to": denial.to,
                "request": denial.request,
                "verdict": denial.verdict,
                "rule": denial.rule.as_deref(),
                "explanation": denial.explanation,
            })
        };
        Value::Array(kept.iter().rev().map(one).collect())
    }
}

/// How many are kept.
const KEPT: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_256_are_kept_newest_first() {
        let decisions = Decisions::new();
        let denial = |request: String| Denial {
            listener: "a".into(),
            from: "b".into(),
            to: "c".into(),
            request,
            verdict: "deny",
            rule: None,
            explanation: "because".into(),
        };
        let ids: Vec<_> = (0..300).map(|_| decisions.id()).collect();
        for (number, id) in ids.iter().enumerate() {
            decisions.record(Arc::clone(id), denial(format!("GET /{number}")));
        }
        let json = decisions.to_json();
        let kept = json.as_array().unwrap();
        assert_eq!(kept.len(), KEPT);
        assert_eq!(kept[0]["request"], "GET /299");
        assert_eq!(kept[0]["id"], &*ids[299]);
        assert_eq!(kept[255]["request"], "GET /44");
    }
}
