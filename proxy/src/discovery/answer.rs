//! What comes of a look-up: addresses that can be dialled, and for how long, or why there are none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::Located;

/// What a name, or the SRV records of one, leads to.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// Where to dial: each address once, by priority and then by address. At least one, at most [`MOST`].
    pub(super) endpoints: Vec<Located>,
    /// How long it holds: from [`SHORTEST`] to [`LONGEST`].
    pub(super) ttl: Duration,
    /// What was left out of it, or could not be learnt.
    pub(super) problem: Option<String>,
    /// The family that could not be asked for, though the other could; of a name, for targets of SRV records have theirs already.
    pub(super) lacks: Option<Family>,
}

/// The addresses of one name.
#[derive(Debug, Clone)]
pub(super) struct Addresses {
    /// In order, each once; at least one.
    pub(super) list: Vec<IpAddr>,
    /// As the records say, and [`PATIENT`] at most where a family is lacking.
    pub(super) ttl: Duration,
    pub(super) problem: Option<String>,
    pub(super) lacks: Option<Family>,
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// Why nothing was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) why: Why,
    /// In words.
    pub(super) problem: String,
    /// How long it holds, where the zone says so (RFC 2308).
    pub(super) ttl: Option<Duration>,
}

/// The kinds of failure, the more telling ones later: of those of several names the greatest is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    /// There is no such name.
    NoName,
    /// There is such a name, without records of the kind.
    NoRecord,
    /// The servers refuse to speak of it.
    Refused,
    /// The servers answer that they cannot tell.
    Unable,
    /// There are addresses, none of which can be dialled.
    Unusable,
    /// Nobody answers.
    NoAnswer,
}

impl Family {
    pub(super) fn holds(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == (self == Self::V4)
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

impl Why {
    /// As a label of metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::NoName => "no_name",
            Self::NoRecord => "no_record",
            Self::Refused | Self::Unable => "error",
            Self::Unusable => "unusable",
            Self::NoAnswer => "no_answer",
        }
    }
}

impl Failure {
    pub(super) fn new(why: Why, problem: impl Into<String>) -> Self {
        Self { why, problem: problem.into(), ttl: None }
    }

    pub(super) fn no_answer() -> Self {
        Self::new(Why::NoAnswer, "no DNS server answers in time")
    }

    /// Whether it may pass at any moment: it is neither that there is no such name, nor that it has no such record.
    pub(super) fn is_passing(&self) -> bool {
        self.why > Why::NoRecord
    }

    /// The one of two that says more. Two answers hold for as short a time as either; one says nothing of how long a failure to
    /// get the other lasts.
    pub(super) fn or(self, other: Self) -> Self {
        let ttl = [self.ttl, other.ttl].into_iter().flatten().min();
        let said = if other.why > self.why { other } else { self };
        if said.is_passing() { said } else { Self { ttl, ..said } }
    }
}

impl Addresses {
    /// Of what was `found`. The family that was `missed` could not be asked for, which is tried again soon.
    pub(super) fn new(
        found: impl IntoIterator<Item = IpAddr>,
        ttl: Duration,
        missed: Option<(Family, Failure)>,
    ) -> Result<Self, Failure> {
        let (list, left_out) = screened(found);
        if list.is_empty() {
            return Err(match left_out {
                Some(problem) => Failure::new(Why::Unusable, problem),
                None => Failure::new(Why::NoRecord, "the name has no address"),
            });
        }
        let missing = missed
            .as_ref()
            .map(|(family, failure)| format!("its {} addresses are not known: {}", family.as_str(), failure.problem));
        let problems: Vec<String> = left_out.into_iter().chain(missing).collect();
        let problem = (!problems.is_empty()).then(|| problems.join("; "));
        let lacks = missed.map(|(family, _)| family);
        let ttl = if lacks.is_some() { ttl.min(PATIENT) } else { ttl };
        Ok(Self { list, ttl, problem, lacks })
    }
}

impl Answer {
    /// Of these `endpoints`; `problems` are those of its parts.
    pub(super) fn new(endpoints: Vec<Located>, ttl: Duration, problems: Vec<String>, lacks: Option<Family>) -> Self {
        let mut problems = problems;
        let endpoints = bounded(endpoints, &mut problems);
        let problem = (!problems.is_empty()).then(|| problems.join("; "));
        Self { endpoints, ttl: ttl.clamp(SHORTEST, LONGEST), problem, lacks }
    }
}

/// Each address once, by priority and then by address, and at most [`MOST`]; that some are left out is a problem.
fn bounded(endpoints: Vec<Located>, problems: &mut Vec<String>) -> Vec<Located> {
    let mut once = BTreeMap::new();
    for located in endpoints {
        let first = once.entry(located.address).or_insert(located);
        if located.priority < first.priority {
            *first = located;
        }
    }
    let mut endpoints: Vec<_> = once.into_values().collect();
    endpoints.sort_by_key(|located| located.priority);
    if endpoints.len() > MOST {
        problems.push(cut(endpoints.len()));
        endpoints.truncate(MOST);
    }
    endpoints
}

/// What is said of more than [`MOST`] addresses.
pub(super) fn cut(count: usize) -> String {
    format!("of {count} addresses the first {MOST} are used")
}

/// The addresses that can be dialled, in order and each once, and what is said of the others.
fn screened(found: impl IntoIterator<Item = IpAddr>) -> (Vec<IpAddr>, Option<String>) {
    let (mut usable, mut left_out) = (BTreeSet::new(), BTreeSet::new());
    for ip in found {
        // What is IPv4 within IPv6 is that.
        let ip = ip.to_canonical();
        match unusable(ip) {
            None => usable.insert(ip),
            Some(kind) => left_out.insert((ip, kind)),
        };
    }
    let problem = left_out.first().map(|(ip, kind)| match left_out.len() {
        1 => format!("{ip} is left out: it is {kind}"),
        count => format!("{ip} and {} more addresses are left out: it is {kind}", count - 1),
    });
    (usable.into_iter().collect(), problem)
}

/// What an address is that no connection can be made to.
fn unusable(ip: IpAddr) -> Option<&'static str> {
    match ip {
        _ if ip.is_unspecified() => Some("unspecified"),
        _ if ip.is_multicast() => Some("multicast"),
        IpAddr::V4(ip) if ip.is_broadcast() => Some("broadcast"),
        IpAddr::V4(ip) if ip.is_link_local() => Some("link-local"),
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Some("link-local, without a zone"),
        _ => None,
    }
}

/// The least and the most that an answer holds, whatever its TTL.
pub(super) const SHORTEST: Duration = Duration::from_secs(1);
pub(super) const LONGEST: Duration = Duration::from_secs(300);

/// The longest wait after a failure, in whole or in part.
pub(super) const PATIENT: Duration = Duration::from_secs(30);

/// The most addresses that an upstream has.
pub(super) const MOST: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    fn located(address: &str, priority: u16) -> Located {
        Located { address: address.parse().unwrap(), weight: 7, priority }
    }

    #[test]
    fn what_cannot_be_dialled_is_left_out_and_said() {
        let found = [
            "224.0.0.1",
            "0.0.0.0",
            "10.0.0.2",
            "255.255.255.255",
            "::",
            "ff02::1",
            "fe80::1",
            "::ffff:0.0.0.0",
            "169.254.0.1",
            "::ffff:169.254.255.255",
        ];
        let (usable, problem) = screened(found.map(|ip| ip.parse().unwrap()));
        assert_eq!(usable, ["10.0.0.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(problem.unwrap(), "0.0.0.0 and 7 more addresses are left out: it is unspecified");
    }

    #[test]
    fn each_address_is_there_once_and_ipv4_comes_first() {
        let found = ["::1", "10.0.0.2", "::ffff:10.0.0.2", "10.0.0.1", "::1"];
        let (usable, problem) = screened(found.map(|ip| ip.parse().unwrap()));
        assert_eq!(usable, ["10.0.0.1", "10.0.0.2", "::1"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        assert_eq!(problem, None);
    }

    #[test]
    fn an_address_that_is_named_twice_has_its_lowest_priority() {
        let endpoints = vec![located("10.0.0.1:2", 5), located("10.0.0.1:1", 9), located("10.0.0.1:2", 1)];
        let answer = Answer::new(endpoints, Duration::ZERO, Vec::new(), None);
        assert_eq!(answer.endpoints, [located("10.0.0.1:2", 1), located("10.0.0.1:1", 9)]);
        assert_eq!(answer.ttl, SHORTEST);
    }

    #[test]
    fn more_than_a_thousand_addresses_are_cut_and_that_is_said() {
        let many = (0..1500_u32).map(|number| Located::plain((IpAddr::from(number.to_be_bytes()), 1).into()));
        let answer = Answer::new(many.rev().collect(), Duration::MAX, Vec::new(), None);
        assert_eq!(answer.endpoints.len(), MOST);
        assert_eq!(answer.endpoints.first().unwrap().address, "0.0.0.0:1".parse().unwrap());
        assert_eq!(answer.problem.unwrap(), "of 1500 addresses the first 1000 are used");
        assert_eq!(answer.ttl, LONGEST);
    }

    #[test]
    fn that_nobody_answers_is_said_before_that_a_name_is_not_there_and_is_asked_again_as_soon_as_ever() {
        let no_name = Failure { ttl: Some(Duration::from_secs(9)), ..Failure::new(Why::NoName, "no name") };
        let silent = Failure::new(Why::NoAnswer, "silent");
        for failure in [no_name.clone().or(silent.clone()), silent.or(no_name)] {
            assert_eq!((failure.problem.as_str(), failure.ttl), ("silent", None));
        }
    }

    #[test]
    fn two_answers_hold_for_as_short_a_time_as_either() {
        let no_name = Failure { ttl: Some(Duration::from_secs(9)), ..Failure::new(Why::NoName, "no name") };
        let no_record = Failure { ttl: Some(Duration::from_secs(20)), ..Failure::new(Why::NoRecord, "no record") };
        for failure in [no_name.clone().or(no_record.clone()), no_record.or(no_name)] {
            assert_eq!((failure.problem.as_str(), failure.ttl), ("no record", Some(Duration::from_secs(9))));
        }
    }

    #[test]
    fn a_family_that_could_not_be_asked_for_is_asked_for_again_within_30_seconds() {
        let found = |missed| Addresses::new(["10.0.0.1".parse().unwrap()], LONGEST, missed).unwrap().ttl;
        assert_eq!(found(Some((Family::V6, Failure::no_answer()))), PATIENT);
        assert_eq!(found(None), LONGEST);
    }
}
