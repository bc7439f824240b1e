//! How many requests a listener lets pass, by rate and at once: the keys `rate_limits` and `concurrency`.

use std::ops::RangeInclusive;
use std::time::Duration;

use countersign_config::{Table, Value};

use super::{Limits, Protocol};

/// Which requests pass, and when. Of raw TCP each connection counts as one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admission {
    /// How often they may come: each of these holds.
    pub rates: Vec<Rate>,
    /// How many may be at the next hop at once.
    pub concurrency: Option<Concurrency>,
}

/// How often requests may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// So many.
    pub number: u32,
    /// In so much time.
    pub per: Duration,
    /// So many at once, after a time without any.
    pub burst: u32,
    /// Whose they are.
    pub of: Of,
}

/// Whose requests a rate is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// Everybody's together.
    Listener,
    /// Those of each identity by itself.
    Identity,
}

/// How many requests may be at the next hop at once, and who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Concurrency {
    /// So many at once.
    pub at_once: usize,
    /// So many of them of one identity.
    pub of_one: usize,
    /// So many wait for their turn; one more is refused.
    pub queue: usize,
    /// How long each of them waits at most.
    pub wait: Duration,
}

impl Admission {
    /// Reads the keys of a listener; `inbound` if its callers have identities.
    pub(super) fn read(table: &Table<'_>, protocol: Option<Protocol>, inbound: bool) -> Option<Self> {
        let counted = if protocol == Some(Protocol::Tcp) { Counted::Connections } else { Counted::Requests };
        let rates = table.optional("rate_limits").map_or(Some(Vec::new()), |value| {
            let rates: Vec<Option<Rate>> =
                value.list()?.iter().map(|value| Rate::read(value, counted, inbound)).collect();
            if rates.len() > MOST_RATES {
                return value.problem(format!("has {} limits; {MOST_RATES} are the most", rates.len()));
            }
            rates.into_iter().collect()
        });
        let concurrency = table.optional("concurrency");
        let concurrency = concurrency.map_or(Some(None), |value| Concurrency::read(&value, counted, inbound).map(Some));
        Some(Self { rates: rates?, concurrency: concurrency? })
    }
}

impl Admission {
    /// Reports a queue with more room than there is, where so much may be under way at once.
    pub(super) fn within(self, table: &Table<'_>, limits: &Limits, protocol: Option<Protocol>) -> Option<Self> {
        let Some(Concurrency { at_once, queue, .. }) = self.concurrency else { return Some(self) };
        let (key, most) = match protocol {
            Some(Protocol::Tcp) => ("connections", limits.connections),
            _ => ("requests", limits.requests),
        };
        let needed = at_once.saturating_add(queue);
        if needed <= most {
            return Some(self);
        }
        table.optional("concurrency")?.problem(format!(
            "{at_once} {key} at once and a queue of {queue} are more than the {most} that limits.{key} lets in; \
             raise that to {needed}, or write a smaller `queue`"
        ))
    }
}

impl Rate {
    fn read(value: &Value<'_>, counted: Counted, inbound: bool) -> Option<Self> {
        let table = value.table()?;
        let number = counted.required(&table).and_then(|value| whole(&value));
        let per = table.required("per").and_then(|value| value.duration(Duration::from_secs(1)..=DAY));
        let burst_value = table.optional("burst");
        let burst = burst_value.as_ref().map_or(Some(None), |value| whole(value).map(Some));
        let of = table.optional("each").map_or(Some(Of::Listener), |value| {
            let of = value.one_of(&[("identity", Of::Identity)])?;
            if !inbound {
                return value.problem("the callers of an outbound listener are one app; leave `each` out");
            }
            Some(of)
        });
        let (number, per) = (number?, per?);
        let burst = burst?.unwrap_or(number);
        if per * burst / number > DAY {
            return burst_value.unwrap_or_else(|| value.clone()).problem(format!(
                "at {number} in {}s a burst of {burst} is there again after more than a day; make it smaller",
                per.as_secs_f64()
            ));
        }
        Some(Self { number, per, burst, of: of? })
    }
}

impl Concurrency {
    fn read(value: &Value<'_>, counted: Counted, inbound: bool) -> Option<Self> {
        let table = value.table()?;
        let at_once = counted.required(&table).and_then(|value| whole(&value));
        let of_one = table.optional("per_identity").map_or(Some(None), |value| {
            if !inbound {
                return value.problem("the callers of an outbound listener are one app; leave `per_identity` out");
            }
            value.integer(1..=at_once.map_or(MOST, u64::from)).map(Some)
        });
        let queue = table.optional("queue").map_or(Some(QUEUE), |value| value.integer(0..=MOST_WAITING));
        let wait_value = table.optional("wait");
        let wait = wait_value.as_ref().map_or(Some(WAIT), |value| value.duration(WAITS));
        if let (Some(0), Some(value)) = (queue, &wait_value) {
            return value.problem("nobody waits where `queue` is 0; leave `wait` out, or let some wait");
        }
        let at_once = at_once? as usize;
        let of_one = of_one?.map_or(Some(at_once), |number| usize::try_from(number).ok())?;
        Some(Self { at_once, of_one, queue: usize::try_from(queue?).ok()?, wait: wait? })
    }
}

/// What a listener counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counted {
    Requests,
    Connections,
}

impl Counted {
    /// The value of the key that says how many.
    fn required<'a>(self, table: &Table<'a>) -> Option<Value<'a>> {
        let (right, wrong, why) = match self {
            Self::Requests => ("requests", "connections", "`limits` bounds connections; write `requests` here"),
            Self::Connections => ("connections", "requests", "of tcp no requests are known; write `connections`"),
        };
        if let Some(value) = table.optional(wrong) {
            // Asked for, so that it is not missed as well.
            let _ = table.optional(right);
            return value.problem(why);
        }
        table.required(right)
    }
}

fn whole(value: &Value<'_>) -> Option<u32> {
    value.integer(1..=MOST).and_then(|number| u32::try_from(number).ok())
}

/// How many limits of rate a listener may have.
pub(crate) const MOST_RATES: usize = 4;

/// The highest number that is meant to limit something.
const MOST: u64 = 1_000_000;

/// A request that waits costs memory.
const MOST_WAITING: u64 = 100_000;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How many wait, and for how long, unless the file says otherwise.
const QUEUE: u64 = 100;
const WAIT: Duration = Duration::from_secs(5);

/// Callers give up as well.
const WAITS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use countersign_config::Document;
    use countersign_identity::TrustDomain;

    use super::*;
    use crate::config::Config;

    /// The problems with a listener that has these keys, or what they say.
    fn read(direction: &str, protocol: &str, keys: &str) -> Result<Admission, String> {
        let listener = match direction {
            "inbound" => "listen: 0.0.0.0:15443, app: 127.0.0.1:80",
            _ => "listen: 127.0.0.1:80, to: a:15443, identity: /a",
        };
        let text = format!("{direction}:\n- {{ name: a, {listener}, protocol: {protocol},\n    {keys} }}\n");
        let document = Document::parse("sidecar.yaml", &text).unwrap();
        let domain = TrustDomain::new("a.example").unwrap();
        let config = document.decode(|root| Config::read(&root.table()?, &domain));
        let mut config = config.map_err(|problems| problems.to_string())?;
        Ok(config.inbound.pop().map_or_else(|| config.outbound.remove(0).admission, |inbound| inbound.admission))
    }

    #[test]
    fn every_key_is_read_and_the_rest_follows_from_it() {
        let limits = "rate_limits: [{ requests: 100, per: 1s, burst: 200, each: identity }, { requests: 7, per: 1m }]";
        let admission = read("inbound", "http", &format!("{limits}, concurrency: {{ requests: 8 }}")).unwrap();
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        let each = Rate { number: 100, per: second, burst: 200, of: Of::Identity };
        let all = Rate { number: 7, per: minute, burst: 7, of: Of::Listener };
        assert_eq!(admission.rates, [each, all]);
        let normal = Concurrency { at_once: 8, of_one: 8, queue: 100, wait: Duration::from_secs(5) };
        assert_eq!(admission.concurrency, Some(normal));
        let keys = "concurrency: { connections: 1, queue: 2, wait: 100ms }, rate_limits: [{ connections: 1, per: 1h }]";
        let admission = read("outbound", "tcp", keys).unwrap();
        let said = Concurrency { at_once: 1, of_one: 1, queue: 2, wait: Duration::from_millis(100) };
        assert_eq!((admission.rates.len(), admission.concurrency), (1, Some(said)));
        let admission = read("inbound", "http", "concurrency: { requests: 8, per_identity: 3 }").unwrap();
        assert_eq!(admission.concurrency, Some(Concurrency { of_one: 3, ..normal }));
        assert_eq!(read("inbound", "grpc", "paths: strict").unwrap(), Admission::default());
    }

    #[test]
    fn what_would_limit_nothing_or_let_nothing_pass_is_refused_with_its_line_and_the_mend() {
        let rate = |keys: &str| read("inbound", "http", &format!("rate_limits: [{{ {keys} }}]"));
        let concurrency = |keys: &str| read("inbound", "http", &format!("concurrency: {{ {keys} }}"));
        for (read, said) in [
            (
                rate("requests: 0, per: 1s"),
                "rate_limits[0].requests: must be a whole number from 1 to 1000000, found \"0\"",
            ),
            (rate("requests: 2000000, per: 1s"), "from 1 to 1000000"),
            (rate("requests: -1, per: 1s"), "from 1 to 1000000"),
            (rate("requests: 1"), "key \"per\" is missing"),
            (rate("requests: 1, per: 0s"), "rate_limits[0].per: \"0s\" is out of range; from 1s to 1day"),
            (rate("requests: 1, per: 10"), "write it with its unit"),
            (rate("requests: 1, per: 1s, burst: 0"), "rate_limits[0].burst: must be a whole number from 1"),
            (rate("requests: 1, per: 1m, burst: 2000"), "a burst of 2000 is there again after more than a day"),
            (rate("requests: 1, per: 1s, each: peer"), "is not one of identity"),
            (rate("requests: 1, per: 1s, brust: 3"), "did you mean \"burst\"?"),
            (rate("connections: 1, per: 1s"), "write `requests` here"),
            (read("inbound", "http", "rate_limits: { requests: 1, per: 1s }"), "must be a list"),
            (concurrency("requests: 0"), "concurrency.requests: must be a whole number from 1"),
            (concurrency("queue: 5"), "key \"requests\" is missing"),
            (concurrency("requests: 1, queue: 1000000"), "concurrency.queue: must be a whole number from 0 to 100000"),
            (concurrency("requests: 4, per_identity: 5"), "per_identity: must be a whole number from 1 to 4"),
            (read("outbound", "http", "concurrency: { requests: 4, per_identity: 2 }"), "leave `per_identity` out"),
            (concurrency("requests: 1, wait: 0s"), "concurrency.wait: \"0s\" is out of range"),
            (concurrency("requests: 1, wait: 1h"), "concurrency.wait: \"1h\" is out of range"),
            (concurrency("requests: 1, queue: 0, wait: 1s"), "leave `wait` out"),
            (
                concurrency("requests: 8, queue: 5000"),
                "concurrency: 8 requests at once and a queue of 5000 are more than the 4000 that limits.requests lets in; \
                 raise that to 5008, or write a smaller `queue`",
            ),
            (concurrency("requests: 8 }, limits: { requests: 100"), "a queue of 100 are more than the 100"),
            (
                read("inbound", "tcp", "concurrency: { connections: 1 }, limits: { connections: 99 }"),
                "raise that to 101",
            ),
            (read("inbound", "tcp", "concurrency: { requests: 1 }"), "write `connections`"),
            (read("outbound", "http", "rate_limits: [{ requests: 1, per: 1s, each: identity }]"), "leave `each` out"),
        ] {
            let error = read.unwrap_err();
            assert!(error.starts_with("sidecar.yaml:3: ") && error.contains(said), "{said:?} is not in\n{error}");
        }
        let five = ["{ requests: 1, per: 1s }"; 5].join(", ");
        assert!(read("inbound", "http", &format!("rate_limits: [{five}]")).unwrap_err().contains("4 are the most"));
        assert!(concurrency("requests: 1, queue: 0").is_ok());
        assert!(concurrency("requests: 8, queue: 92 }, limits: { requests: 100").is_ok());
        assert!(
            read("outbound", "http", "concurrency: { requests: 8, queue: 5000 }").is_ok(),
            "nothing else bounds it"
        );
    }
}
