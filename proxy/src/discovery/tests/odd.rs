//! Discovery against a DNS server that does what a sound one does not: it leaves single questions without an answer,
//! encloses one family and not the other, and cuts answers short that it does not give over TCP.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use countersign_runtime::Lifecycle;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{SOA, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::net::{TcpSocket, UdpSocket};

use super::super::answer::{Answer, Failure, PATIENT, Why};
use super::super::following::follow;
use super::super::look_up::look_up;
use super::super::servers::Servers;
use super::super::services::Known;
use crate::config::Address;

/// What it answers to each question. To others it says that there is no such record, for five minutes.
#[derive(Default)]
struct Odd {
    replies: Arc<Mutex<HashMap<(String, RecordType), Reply>>>,
}

#[derive(Clone)]
enum Reply {
    Nothing,
    Code(ResponseCode),
    Records {
        answers: Vec<Record>,
        enclosed: Vec<Record>,
    },
    /// The beginning of an answer that has no room in a datagram.
    CutShort(Vec<Record>),
}

impl Odd {
    /// Its reply to the question for `name`, from now on.
    fn says(&self, name: &str, kind: RecordType, reply: Reply) {
        self.replies.lock().unwrap().insert((name.to_owned(), kind), reply);
    }

    /// Its addresses of `name`, which hold for five minutes.
    fn has(&self, name: &str, ips: &[&str]) {
        for kind in [RecordType::A, RecordType::AAAA] {
            let of_kind = ips.iter().map(|ip| address(name, ip)).filter(|record| record.record_type() == kind);
            self.says(name, kind, Reply::Records { answers: of_kind.collect(), enclosed: Vec::new() });
        }
    }

    /// It says so of both families.
    fn says_of(&self, name: &str, reply: &Reply) {
        for kind in [RecordType::A, RecordType::AAAA] {
            self.says(name, kind, reply.clone());
        }
    }

    /// `_mesh._tcp.mesh.test` is offered by these targets, on port 80.
    fn offers(&self, targets: &[&str], enclosed: &[(&str, &str)]) {
        let record = |target: &&str| {
            let srv = SRV::new(1, 1, 80, name(target));
            Record::from_rdata(name("_mesh._tcp.mesh.test."), 300, RData::SRV(srv))
        };
        let answers = targets.iter().map(record).collect();
        let enclosed = enclosed.iter().map(|(name, ip)| address(name, ip)).collect();
        self.says("_mesh._tcp.mesh.test.", RecordType::SRV, Reply::Records { answers, enclosed });
    }

    /// Where it listens, over UDP alone: while the socket lives nobody listens there over TCP.
    async fn listens(&self) -> (SocketAddr, TcpSocket) {
        loop {
            let tcp = TcpSocket::new_v4().unwrap();
            tcp.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
            let address = tcp.local_addr().unwrap();
            if let Ok(udp) = UdpSocket::bind(address).await {
                tokio::spawn(serve(udp, Arc::clone(&self.replies)));
                return (address, tcp);
            }
        }
    }

    /// Who asks it, once for each question, with these search domains and this hosts file.
    async fn asked(&self, search: &[&str], hosts: &str) -> Servers {
        self.asked_with(search, hosts, ResolverOpts::default()).await
    }

    async fn asked_with(&self, search: &[&str], hosts: &str, mut options: ResolverOpts) -> Servers {
        let mut udp = ConnectionConfig::udp();
        udp.port = self.listens().await.0.port();
        let server = NameServerConfig::new(Ipv4Addr::LOCALHOST.into(), true, vec![udp]);
        let search = search.iter().map(|domain| name(domain)).collect();
        options.attempts = 0;
        Servers::new(ResolverConfig::from_parts(None, search, vec![server]), options, hosts.as_bytes()).unwrap()
    }
}

async fn serve(socket: UdpSocket, replies: Arc<Mutex<HashMap<(String, RecordType), Reply>>>) {
    let mut buffer = [0; 4096];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        let question = Message::from_vec(&buffer[..length]).unwrap();
        let asked = question.queries.first().unwrap().clone();
        let mut answer = Message::response(question.metadata.id, OpCode::Query);
        match replies.lock().unwrap().get(&(asked.name().to_string(), asked.query_type())) {
            Some(Reply::Nothing) => continue,
            Some(Reply::Code(code)) => answer.metadata.response_code = *code,
            Some(Reply::Records { answers, enclosed }) => {
                answer.add_answers(answers.iter().cloned()).add_additionals(enclosed.iter().cloned());
            }
            Some(Reply::CutShort(answers)) => {
                answer.metadata.truncation = true;
                answer.add_answers(answers.iter().cloned());
            }
            None => {}
        }
        if answer.answers.is_empty() && !answer.metadata.truncation {
            let soa = SOA::new(name("ns.test."), name("hostmaster.test."), 1, 3600, 600, 86400, 300);
            answer.add_authority(Record::from_rdata(name("test."), 300, RData::SOA(soa)));
        }
        answer.add_query(asked);
        socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
    }
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn address(of: &str, ip: &str) -> Record {
    let data = match ip.parse().unwrap() {
        IpAddr::V4(ip) => RData::A(ip.into()),
        IpAddr::V6(ip) => RData::AAAA(ip.into()),
    };
    Record::from_rdata(name(of), 300, data)
}

async fn find(servers: &Servers, of: &str) -> Result<Answer, Failure> {
    look_up(servers, &of.parse().unwrap(), &mut Known::new()).await
}

async fn find_service(servers: &Servers, known: &mut Known) -> Result<Answer, Failure> {
    look_up(servers, &"srv://_mesh._tcp.mesh.test".parse().unwrap(), known).await
}

fn shown(answer: &Answer) -> Vec<String> {
    answer.endpoints.iter().map(|located| located.address.to_string()).collect()
}

#[tokio::test]
async fn silence_is_not_waited_out_for_as_long_as_another_answer_holds() {
    let odd = Odd::default();
    odd.says("api.test.", RecordType::A, Reply::Nothing);
    let failure = find(&odd.asked(&[], "").await, "api.test.:80").await.unwrap_err();
    assert_eq!((failure.why, failure.ttl), (Why::NoAnswer, None));
}

#[tokio::test]
async fn a_family_that_nobody_tells_is_asked_for_again_within_30_seconds() {
    let odd = Odd::default();
    odd.has("api.test.", &["127.0.0.2"]);
    odd.says("api.test.", RecordType::AAAA, Reply::Nothing);
    let answer = find(&odd.asked(&[], "").await, "api.test.:80").await.unwrap();
    assert_eq!((shown(&answer), answer.ttl), (vec!["127.0.0.2:80".to_owned()], PATIENT));
}

#[tokio::test]
async fn a_server_that_cannot_tell_leads_to_no_other_name_of_the_search_list() {
    let odd = Odd::default();
    odd.has("api.other.test.", &["127.0.0.9"]);
    let servers = odd.asked(&["mine.test.", "other.test."], "").await;
    odd.says_of("api.mine.test.", &Reply::Code(ResponseCode::ServFail));
    let failure = find(&servers, "api:80").await.unwrap_err();
    assert_eq!((failure.why, failure.ttl), (Why::Unable, None));
}

#[tokio::test]
async fn that_there_is_no_such_name_goes_for_both_families() {
    let odd = Odd::default();
    odd.has("api.other.test.", &["127.0.0.9"]);
    let servers = odd.asked(&["mine.test.", "other.test."], "").await;
    for silent in [RecordType::A, RecordType::AAAA] {
        odd.says_of("api.mine.test.", &Reply::Code(ResponseCode::NXDomain));
        odd.says("api.mine.test.", silent, Reply::Nothing);
        let answer = find(&servers, "api:80").await.unwrap();
        assert_eq!(shown(&answer), ["127.0.0.9:80"], "without {silent}");
    }
}

#[tokio::test]
async fn a_target_that_cannot_be_asked_for_keeps_its_addresses_and_one_that_is_gone_has_none() {
    let odd = Odd::default();
    odd.offers(&["one.test.", "two.test."], &[]);
    odd.has("one.test.", &["127.0.0.1"]);
    let servers = odd.asked(&[], "").await;
    let mut known = Known::new();
    for (reply, why) in [
        (Reply::Code(ResponseCode::ServFail), "DNS answers: Server Failure"),
        (Reply::Code(ResponseCode::Refused), "DNS answers: Query Refused"),
        (Reply::Nothing, "no DNS server answers in time"),
    ] {
        odd.has("two.test.", &["127.0.0.2", "::2"]);
        let answer = find_service(&servers, &mut known).await.unwrap();
        assert_eq!(shown(&answer), ["127.0.0.1:80", "127.0.0.2:80", "[::2]:80"]);
        assert!(answer.ttl > PATIENT, "{:?}", answer.ttl);
        odd.says_of("two.test.", &reply);
        // However often it fails.
        for _ in 0..2 {
            let answer = find_service(&servers, &mut known).await.unwrap();
            assert_eq!(shown(&answer), ["127.0.0.1:80", "127.0.0.2:80", "[::2]:80"]);
            assert_eq!(answer.problem.unwrap(), format!("srv://_mesh._tcp.mesh.test: two.test.: {why}"));
            assert_eq!(answer.ttl, PATIENT);
        }
    }
    odd.says_of("two.test.", &Reply::Code(ResponseCode::NXDomain));
    assert_eq!(shown(&find_service(&servers, &mut known).await.unwrap()), ["127.0.0.1:80"]);
    odd.says_of("one.test.", &Reply::Code(ResponseCode::ServFail));
    let failure = find_service(&servers, &mut known).await.unwrap_err();
    assert_eq!(failure.why, Why::Unable, "where no target can be asked for, the look-up has failed");
}

#[tokio::test]
async fn a_target_of_which_one_family_cannot_be_asked_for_keeps_that() {
    let odd = Odd::default();
    odd.offers(&["one.test."], &[]);
    odd.has("one.test.", &["127.0.0.1", "::1"]);
    let servers = odd.asked(&[], "").await;
    let mut known = Known::new();
    find_service(&servers, &mut known).await.unwrap();
    odd.has("one.test.", &["127.0.0.2"]);
    odd.says("one.test.", RecordType::AAAA, Reply::Code(ResponseCode::ServFail));
    let answer = find_service(&servers, &mut known).await.unwrap();
    assert_eq!((shown(&answer), answer.ttl), (vec!["127.0.0.2:80".to_owned(), "[::1]:80".to_owned()], PATIENT));
}

#[tokio::test]
async fn targets_that_nobody_tells_do_not_use_up_the_time_of_those_that_were_found() {
    let odd = Odd::default();
    // All in one datagram.
    let silent: Vec<_> = (0..40).map(|number| format!("s{number}.")).collect();
    let targets: Vec<&str> = silent.iter().map(String::as_str).chain(["first."]).collect();
    odd.offers(&targets, &[]);
    odd.has("first.", &["127.0.0.1"]);
    silent.iter().for_each(|name| odd.says_of(name, &Reply::Nothing));
    let answer = find_service(&odd.asked(&[], "").await, &mut Known::new()).await.unwrap();
    assert_eq!(shown(&answer), ["127.0.0.1:80"]);
}

#[tokio::test]
async fn a_family_that_an_answer_does_not_enclose_is_asked_for() {
    let odd = Odd::default();
    odd.offers(&["four.test.", "six.test."], &[("four.test.", "127.0.0.4"), ("six.test.", "::6")]);
    odd.has("four.test.", &["127.0.0.9", "::4"]);
    odd.has("six.test.", &["127.0.0.6", "::9"]);
    let answer = find_service(&odd.asked(&[], "").await, &mut Known::new()).await.unwrap();
    assert_eq!(shown(&answer), ["127.0.0.4:80", "127.0.0.6:80", "[::4]:80", "[::6]:80"]);
    assert_eq!(answer.problem, None);
}

#[tokio::test]
async fn the_hosts_file_counts_before_what_an_answer_encloses() {
    let odd = Odd::default();
    let enclosed = [("one.test.", "127.0.0.1"), ("one.test.", "::1"), ("two.test.", "127.0.0.2"), ("two.test.", "::2")];
    odd.offers(&["one.test.", "two.test."], &enclosed);
    let answer = find_service(&odd.asked(&[], "127.0.0.8 one.test\n").await, &mut Known::new()).await.unwrap();
    assert_eq!(shown(&answer), ["127.0.0.2:80", "127.0.0.8:80", "[::2]:80"]);
}

#[tokio::test]
async fn servers_have_a_second_to_answer_whatever_resolv_conf_says() {
    let odd = Odd::default();
    odd.has("api.test.", &["127.0.0.2"]);
    let mut options = ResolverOpts::default();
    options.timeout = Duration::ZERO;
    let answer = find(&odd.asked_with(&[], "", options).await, "api.test.:80").await.unwrap();
    assert_eq!(answer.endpoints.first().unwrap().address, SocketAddr::from(([127, 0, 0, 2], 80)));
}

/// As where a firewall lets UDP alone pass.
#[tokio::test]
async fn an_answer_cut_short_that_cannot_be_had_over_tcp_is_a_failure_and_the_last_addresses_stay() {
    let name = "api.mesh.test.";
    let for_a_second = |ips: &[&str]| -> Vec<Record> {
        ips.iter().map(|ip| Record::from_rdata(self::name(name), 1, address(name, ip).data)).collect()
    };
    let whole = |ips: &[&str]| Reply::Records { answers: for_a_second(ips), enclosed: Vec::new() };
    for begins_with in [&[][..], &["127.0.0.2"]] {
        let odd = Odd::default();
        odd.says(name, RecordType::A, whole(&["127.0.0.2", "127.0.0.3"]));
        let (at, _refuses) = odd.listens().await;
        let (directory, lifecycle) = (tempfile::tempdir().unwrap(), Lifecycle::new());
        let resolver = super::asking(directory.path(), &[at], &lifecycle);
        let api = "api.mesh.test:80".parse::<Address>().unwrap();
        let discovery = follow(vec![api.clone()], Arc::clone(&resolver), &lifecycle);
        assert_eq!(super::shown(&discovery.first().await.unwrap()), ["127.0.0.2:80", "127.0.0.3:80"]);

        odd.says(name, RecordType::A, Reply::CutShort(for_a_second(begins_with)));
        let failed = super::until(&discovery, "it fails", |found| found.problem.is_some()).await;
        let problem = failed.problem.as_deref().unwrap();
        assert_eq!(super::shown(&failed), ["127.0.0.2:80", "127.0.0.3:80"], "{problem}");
        assert!(problem.contains("truncated") && problem.ends_with("; its last addresses stay"), "{problem}");
        // Who asks for the first time is told as well.
        let afresh = super::asking(directory.path(), &[at], &lifecycle).addresses(&api).await.unwrap_err();
        assert!(afresh.starts_with("api.mesh.test: ") && afresh.contains("truncated"), "{afresh}");

        odd.says(name, RecordType::A, whole(&["127.0.0.4"]));
        let found = super::until(&discovery, "it is whole", |found| super::shown(found) == ["127.0.0.4:80"]).await;
        assert_eq!(found.problem, None);
        lifecycle.stop();
    }
}
