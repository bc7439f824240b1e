//! The DNS servers, and how a name is asked for: the hosts file first, then each name of the search list, A and AAAA at
//! once.
//!
//! The library is asked for names in full only: which names to try, and when to stop, is decided here, for it goes on to the
//! next name also where nobody answered, and reports what the last one ended with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, Record, RecordType};
use hickory_resolver::{Hosts, TokioResolver};

use super::answer::{Addresses, Failure, Family, LONGEST, SHORTEST, Why};

/// Who is asked for names, and what is known of them here.
pub(super) struct Servers {
    /// The first asks two servers at a time and takes the first answer. Where there are several, each follows alone, for that
    /// answer may be an error where another server knows better.
    ask: Vec<TokioResolver>,
    search: Vec<Name>,
    /// Names with as many dots are asked for as they stand before the search list.
    ndots: usize,
    hosts: Hosts,
}

impl Servers {
    /// `hosts` is a hosts file.
    pub(super) fn new(config: ResolverConfig, mut options: ResolverOpts, hosts: &[u8]) -> Result<Self, NetError> {
        // Answers are kept by who asks: the library's own cache would hold back a change that is asked for.
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        options.timeout = options.timeout.clamp(SHORTEST, PATIENCE);
        options.attempts = options.attempts.min(ONCE_MORE);
        let ndots = options.ndots;
        let (domain, search, servers) = config.into_parts();
        let resolver = |servers: Vec<NameServerConfig>| {
            let config = ResolverConfig::from_name_servers(servers);
            let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            *builder.options_mut() = options.clone();
            builder.build()
        };
        let mut ask = vec![resolver(servers.clone())?];
        if servers.len() > 1 {
            for server in servers {
                ask.push(resolver(vec![server])?);
            }
        }
        let search = if search.is_empty() { domain.into_iter().collect() } else { search };
        let mut known = Hosts::default();
        if let Err(error) = known.read_hosts_conf(hosts) {
            tracing::warn!(%error, "the hosts file is read up to there");
        }
        Ok(Self { ask, search, ndots, hosts: known })
    }

    /// Nobody.
    pub(super) fn none() -> Self {
        Self { ask: Vec::new(), search: Vec::new(), ndots: 1, hosts: Hosts::default() }
    }

    /// The addresses of `host`, which may be relative to a search domain.
    pub(super) async fn addresses(&self, host: &str) -> Result<Addresses, Failure> {
        let name = parsed(host)?;
        if let Some(known) = self.known(&name) {
            return known;
        }
        let mut failed: Option<Failure> = None;
        for name in self.candidates(&name) {
            match self.both(&name, &[]).await {
                Ok(found) => return Ok(found),
                Err(failure) => failed = Some(later(failed, failure)?),
            }
        }
        Err(failed.unwrap_or_else(no_name))
    }

    /// The addresses of a name that is given in full. A family that is `enclosed` in another answer is not asked for.
    pub(super) async fn addresses_of(&self, name: &Name, enclosed: &[&Record]) -> Result<Addresses, Failure> {
        match self.known(name) {
            Some(known) => known,
            None => self.both(name, enclosed).await,
        }
    }

    /// As [`Servers::addresses_of`], without asking anybody; `None` where nothing is at hand.
    pub(super) fn at_hand(&self, name: &Name, enclosed: &[&Record]) -> Option<Result<Addresses, Failure>> {
        self.known(name).or_else(|| {
            let ttl = enclosed.iter().map(|record| record.ttl).min()?;
            let found = enclosed.iter().filter_map(|record| record.data.ip_addr());
            Some(Addresses::new(found, Duration::from_secs(ttl.into()), None))
        })
    }

    /// The records of `kind` of the first of the names that `name` may stand for.
    pub(super) async fn records(&self, name: &str, kind: RecordType) -> Result<Lookup, Failure> {
        let name = parsed(name)?;
        let mut failed: Option<Failure> = None;
        for name in self.candidates(&name) {
            match self.ask(&name, kind).await {
                Ok(found) => return Ok(found),
                Err(failure) => failed = Some(later(failed, failure)?),
            }
        }
        Err(failed.unwrap_or_else(no_name))
    }

    /// What needs no server: the hosts file as it stands, for its owner is this machine's; and `localhost`, which is this
    /// machine whatever anybody says (RFC 6761, section 6.3): what goes there may go in plain.
    fn known(&self, name: &Name) -> Option<Result<Addresses, Failure>> {
        let mut listed = Vec::new();
        for kind in [RecordType::A, RecordType::AAAA] {
            let found = self.hosts.lookup_static_host(&Query::query(name.clone(), kind));
            listed.extend(
                found.iter().flat_map(|found| found.answers().iter().filter_map(|record| record.data.ip_addr())),
            );
        }
        if name.is_localhost() {
            listed.retain(IpAddr::is_loopback);
            if listed.is_empty() {
                listed = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            }
        }
        (!listed.is_empty()).then(|| Addresses::new(listed, LONGEST, None))
    }

    /// The names that `name` may stand for, in full, in the order in which they are asked for.
    fn candidates(&self, name: &Name) -> Vec<Name> {
        if name.is_fqdn() {
            return vec![name.clone()];
        }
        let mut as_it_stands = name.clone();
        as_it_stands.set_fqdn(true);
        let mut names: Vec<Name> =
            self.search.iter().filter_map(|domain| name.clone().append_domain(domain).ok()).collect();
        let first = if usize::from(name.num_labels()) > self.ndots { 0 } else { names.len() };
        names.insert(first, as_it_stands);
        names
    }

    /// The A and AAAA records of a name in full. That one kind cannot be had does not hold back the other.
    async fn both(&self, name: &Name, enclosed: &[&Record]) -> Result<Addresses, Failure> {
        let (v4, v6) =
            tokio::join!(self.family(name, RecordType::A, enclosed), self.family(name, RecordType::AAAA, enclosed));
        let (found, ttl, missed) = match (v4, v6) {
            (Ok((v4, ttl)), Ok((v6, other))) => ([v4, v6].concat(), ttl.min(other), None),
            (Ok((v4, ttl)), Err(failure)) => (v4, ttl, Some((Family::V6, failure))),
            (Err(failure), Ok((v6, ttl))) => (v6, ttl, Some((Family::V4, failure))),
            // That there is no such name goes for both.
            (Err(failure), Err(_)) | (Err(_), Err(failure)) if failure.why == Why::NoName => return Err(failure),
            (Err(v4), Err(v6)) => return Err(v4.or(v6)),
        };
        // That there are none of a family is an answer.
        Addresses::new(found, ttl, missed.filter(|(_, failure)| failure.is_passing()))
    }

    /// The addresses of one kind, and how long they hold.
    async fn family(
        &self,
        name: &Name,
        kind: RecordType,
        enclosed: &[&Record],
    ) -> Result<(Vec<IpAddr>, Duration), Failure> {
        let enclosed: Vec<_> = enclosed.iter().filter(|record| record.record_type() == kind).collect();
        if let Some(ttl) = enclosed.iter().map(|record| record.ttl).min() {
            let found = enclosed.iter().filter_map(|record| record.data.ip_addr()).collect();
            return Ok((found, Duration::from_secs(ttl.into())));
        }
        let found = self.ask(name, kind).await?;
        Ok((found.answers().iter().filter_map(|record| record.data.ip_addr()).collect(), left(&found)))
    }

    /// The records of a name in full. The word of a server that can tell counts; where none can, the most telling.
    async fn ask(&self, name: &Name, kind: RecordType) -> Result<Lookup, Failure> {
        let mut failed: Option<Failure> = None;
        for servers in &self.ask {
            let failure = match servers.lookup(name.clone(), kind).await {
                Ok(found) => return Ok(found),
                Err(error) => because(&error, kind),
            };
            failed = Some(match failed {
                _ if !failure.is_passing() => return Err(failure),
                // The first has asked all.
                None if failure.why == Why::NoAnswer => return Err(failure),
                None => failure,
                Some(before) => before.or(failure),
            });
        }
        Err(failed.unwrap_or_else(|| Failure::new(Why::NoAnswer, "there is no DNS server")))
    }
}

/// How long the records of an answer still hold.
pub(super) fn left(found: &Lookup) -> Duration {
    found.valid_until().saturating_duration_since(Instant::now())
}

fn parsed(name: &str) -> Result<Name, Failure> {
    Name::from_ascii(name).map_err(|error| Failure::new(Why::NoName, format!("it is no name of DNS: {error}")))
}

/// What is kept of the failure of one name, where the next one is asked for; an error where it is not. Where nobody answers or
/// can tell, the name may be there, and that may be somebody's doing: it must not lead on to a name that he has. A server
/// refuses what it does not serve, such as a search domain of somewhere else.
fn later(before: Option<Failure>, failure: Failure) -> Result<Failure, Failure> {
    match before {
        _ if failure.why > Why::Refused => Err(failure),
        Some(before) => Ok(before.or(failure)),
        None => Ok(failure),
    }
}

fn no_name() -> Failure {
    Failure::new(Why::NoName, "DNS has no such name")
}

fn because(error: &NetError, kind: RecordType) -> Failure {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            let mut failure = match none.response_code {
                ResponseCode::NXDomain => no_name(),
                _ if kind == RecordType::SRV => Failure::new(Why::NoRecord, "the name has no SRV record"),
                _ => Failure::new(Why::NoRecord, "the name has no address"),
            };
            failure.ttl = none.negative_ttl.map(|seconds| Duration::from_secs(seconds.into()));
            failure
        }
        NetError::Dns(DnsError::ResponseCode(code)) => {
            let why = if *code == ResponseCode::Refused { Why::Refused } else { Why::Unable };
            Failure::new(why, format!("DNS answers: {code}"))
        }
        NetError::Timeout => Failure::no_answer(),
        error => Failure::new(Why::NoAnswer, format!("no DNS server answers: {error}")),
    }
}

/// How long one attempt may take, and how many follow the first: what `resolv.conf` says, if that is less, but no attempt has
/// less than [`SHORTEST`].
const PATIENCE: Duration = Duration::from_secs(2);
const ONCE_MORE: usize = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(resolv_conf: &str, hosts: &str) -> Servers {
        let (config, options) = hickory_resolver::system_conf::parse_resolv_conf(resolv_conf).unwrap();
        Servers::new(config, options, hosts.as_bytes()).unwrap()
    }

    fn names(servers: &Servers, name: &str) -> Vec<String> {
        servers.candidates(&Name::from_ascii(name).unwrap()).iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn names_are_searched_for_as_resolv_conf_says() {
        let text = "nameserver 127.0.0.1\nsearch shop.svc.test svc.test\noptions ndots:2\n";
        let servers = servers(text, "");
        assert_eq!(names(&servers, "api"), ["api.shop.svc.test.", "api.svc.test.", "api."]);
        assert_eq!(names(&servers, "api.shop"), ["api.shop.shop.svc.test.", "api.shop.svc.test.", "api.shop."]);
        assert_eq!(names(&servers, "a.b.c"), ["a.b.c.", "a.b.c.shop.svc.test.", "a.b.c.svc.test."]);
        assert_eq!(names(&servers, "api."), ["api."]);
    }

    #[tokio::test]
    async fn the_hosts_file_needs_no_server_and_names_of_it_are_not_asked_for() {
        let servers = servers("nameserver 127.0.0.1\n", "10.1.2.3 app App.local # the app\n224.0.0.1 app\n");
        for name in ["app", "APP", "app."] {
            let found = servers.addresses(name).await.unwrap();
            assert_eq!(found.list, ["10.1.2.3".parse::<IpAddr>().unwrap()]);
        }
    }

    #[tokio::test]
    async fn dns_is_not_asked_for_a_name_to_which_the_hosts_file_gives_no_usable_address() {
        let servers = servers("nameserver 127.0.0.1\n", "0.0.0.0 app\n:: app\n");
        let failure = servers.addresses("app").await.unwrap_err();
        assert_eq!(failure.why, Why::Unusable);
        assert_eq!(failure.problem, "0.0.0.0 and 1 more addresses are left out: it is unspecified");
    }

    #[tokio::test]
    async fn localhost_is_this_machine_whatever_the_hosts_file_says() {
        let both: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        for (hosts, expected) in [
            ("", both.clone()),
            ("10.1.2.3 localhost\n", both),
            ("127.0.0.5 localhost\n10.1.2.3 localhost\n", vec![Ipv4Addr::new(127, 0, 0, 5).into()]),
        ] {
            assert_eq!(servers("nameserver 127.0.0.1\n", hosts).addresses("localhost").await.unwrap().list, expected);
        }
    }
}
