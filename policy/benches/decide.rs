//! What a decision costs, by the number of rules and their shape. `cargo bench -p countersign-policy`.
//!
//! - `callers`: as many callers as rules, all to one destination, each with a path of its own. The common shape.
//! - `paths`: one caller and one destination; every rule another path, by turns literal, with a wildcard at the front
//!   or the back of a segment, with `**` in the middle, and with two `**`. The shape that defeats lookup by caller.
//!
//! Of each: a request that a rule in the middle allows, one that no rule allows, the same with its explanation, and
//! one made to be expensive: 8 KiB of short segments that many patterns nearly match.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fmt::Write;
use std::hint::black_box;

use countersign_identity::SpiffeId;
use countersign_policy::{Action, Matcher, Policy, Request};
use criterion::{Criterion, criterion_group, criterion_main};

fn decide(c: &mut Criterion) {
    for count in [10, 1_000, 10_000] {
        let middle = count / 2;
        let bench = Bench::new(callers(count), &format!("/ns/team{middle}/sa/app"));
        bench.allow(c, &format!("callers/{count}/allow"), &format!("/api/resource{middle}/7"));
        bench.deny(c, &format!("callers/{count}"));
        Bench::new(callers(count), "/ns/stranger/sa/app").deny(c, &format!("callers/{count}/stranger"));
        let bench = Bench::new(paths(count), "/ns/team/sa/app");
        let middle = middle / 5 * 5;
        for (shape, path) in [
            ("literal", format!("/items/kind{middle}/list")),
            ("prefix", format!("/items/p{}-x/list", middle + 1)),
            ("suffix", format!("/items/x-s{}/list", middle + 2)),
            ("gap", format!("/items/a/b/c/tail{}", middle + 3)),
            ("two_gaps", format!("/items/a/mid{}/b/c/end", middle + 4)),
        ] {
            bench.allow(c, &format!("paths/{count}/allow_{shape}"), &path);
        }
        bench.deny(c, &format!("paths/{count}"));
    }
    c.bench_function("compile/callers/10000", |b| {
        let policy = callers(10_000);
        b.iter(|| Matcher::compile(&policy, &id("/ns/team/sa/server")));
    });
    c.bench_function("compile/paths/10000", |b| {
        let policy = paths(10_000);
        b.iter(|| Matcher::compile(&policy, &id("/ns/team/sa/server")));
    });
}

struct Bench {
    matcher: Matcher,
    from: SpiffeId,
}

impl Bench {
    fn new(policy: Policy, from: &str) -> Self {
        Self { matcher: Matcher::compile(&policy, &id("/ns/team/sa/server")), from: id(from) }
    }

    fn allow(&self, c: &mut Criterion, name: &str, path: &str) {
        let request = self.request(path);
        assert!(self.matcher.decide(&request).passes(), "{path}");
        c.bench_function(name, |b| b.iter(|| self.matcher.decide(black_box(&request)).passes()));
    }

    fn deny(&self, c: &mut Criterion, name: &str) {
        let hostile = "/mid4/p6-".repeat(819);
        for (shape, path) in [("", "/items/kind/other"), ("_hostile", &hostile)] {
            let request = self.request(path);
            assert!(!self.matcher.decide(&request).passes());
            c.bench_function(&format!("{name}/deny{shape}"), |b| {
                b.iter(|| self.matcher.decide(black_box(&request)).passes());
            });
            c.bench_function(&format!("{name}/deny{shape}_explained"), |b| {
                b.iter(|| self.matcher.decide(black_box(&request)).to_string());
            });
        }
    }

    fn request<'a>(&'a self, path: &'a str) -> Request<'a> {
        Request { from: &self.from, action: Action::Http { method: "POST", path } }
    }
}

fn callers(count: usize) -> Policy {
    policy(count, |rule| (format!("/ns/team{rule}/sa/app"), format!("/api/resource{rule}/**")))
}

fn paths(count: usize) -> Policy {
    policy(count, |rule| {
        let path = match rule % 5 {
            0 => format!("/items/kind{rule}/list"),
            1 => format!("/items/p{rule}-*/list"),
            2 => format!("/items/*-s{rule}/list"),
            3 => format!("/items/**/tail{rule}"),
            _ => format!("/**/mid{rule}/**/end"),
        };
        ("/ns/team/sa/app".to_owned(), path)
    })
}

fn policy(count: usize, rule: impl Fn(usize) -> (String, String)) -> Policy {
    let mut text = "version: 1\ntrust_domain: a.example\nrules:\n".to_owned();
    for index in 0..count {
        let (from, path) = rule(index);
        writeln!(text, "- name: rule {index}\n  from: {from}\n  to: /ns/team/sa/server").unwrap();
        writeln!(text, "  allow: {{ methods: [GET, POST], paths: [\"{path}\"] }}").unwrap();
    }
    Policy::parse("policy.yaml", &text).unwrap()
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::new(format!("spiffe://a.example{path}")).unwrap()
}

criterion_group!(benches, decide);
criterion_main!(benches);
