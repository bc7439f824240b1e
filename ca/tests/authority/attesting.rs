//! Join tokens and the kernel's word: who is let in, and who is not.

use std::time::Duration;

use tonic::Code;

use crate::support::{Agent, Home, WEB, eventually, metric, replace};

const ID: &str = "spiffe://example.org/ns/shop/sa/web";

#[tokio::test]
async fn of_twenty_keys_with_one_single_use_token_exactly_one_wins() {
    let home = Home::new().await;
    let authority = home.start().await;
    let token = home.token("shop/web", 1).await;
    let mut sessions = Vec::new();
    for _ in 0..20 {
        sessions.push(Agent::new(&home).dial(&authority).await);
    }
    let attempts = sessions.into_iter().map(|mut session| {
        let token = token.clone();
        tokio::spawn(async move { (session.attest_token(&token).await, session.issue().await) })
    });
    let mut won = 0;
    for attempt in attempts.collect::<Vec<_>>() {
        match attempt.await.unwrap() {
            (Ok(id), Ok(_)) => {
                assert_eq!(id, ID);
                won += 1;
            }
            (Err(attest), Err(issue)) => {
                assert_eq!(attest.code(), Code::Unauthenticated, "{attest}");
                assert!([Code::Unauthenticated, Code::ResourceExhausted].contains(&issue.code()), "{issue}");
            }
            other => panic!("attested and not served, or the reverse: {other:?}"),
        }
    }
    assert_eq!(won, 1);
    assert_eq!(home.refused("token_reused_by_another_key").await, 19);
    assert_eq!(countersign_ca::status(&home.config).await.unwrap().agents.len(), 1);
    authority.stop().await;
}

#[tokio::test]
async fn a_token_is_good_for_as_many_keys_as_it_says() {
    let home = Home::new().await;
    let authority = home.start().await;
    let token = home.token("shop/web", 3).await;
    let mut results = Vec::new();
    for _ in 0..5 {
        results.push(Agent::new(&home).dial(&authority).await.attest_token(&token).await.is_ok());
    }
    assert_eq!(results, [true, true, true, false, false]);
    authority.stop().await;
}

#[tokio::test]
async fn the_same_key_may_show_its_token_again_and_needs_it_no_more() {
    let home = Home::new().await;
    let authority = home.start().await;
    let token = home.token("shop/web", 1).await;
    let agent = Agent::new(&home);
    for _ in 0..3 {
        let mut session = agent.dial(&authority).await;
        assert_eq!(session.attest_token(&token).await.unwrap(), ID);
    }
    let attested = home.audit().await.iter().filter(|entry| entry.event == "attested").count();
    assert_eq!(attested, 1, "nothing is consumed or written again");
    authority.stop().await;

    // The binding is the store's: it outlives the process.
    let authority = home.start().await;
    let mut session = agent.dial(&authority).await;
    assert_eq!(session.attest_enrolled().await.unwrap(), ID);
    session.issue().await.unwrap();
    let mut thief = Agent::new(&home).dial(&authority).await;
    let refused = thief.attest_token(&token).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    authority.stop().await;
}

#[tokio::test]
async fn an_expired_an_unknown_and_a_stolen_token_look_alike_outside_and_differ_in_the_audit() {
    let home = Home::new().await;
    let authority = home.start().await;
    let short = countersign_ca::token::create(&home.config, "shop/web", Duration::from_secs(1), 1).await.unwrap();
    let spent = home.token("shop/web", 1).await;
    Agent::new(&home).dial(&authority).await.attest_token(&spent).await.unwrap();
    let unknown = format!("cst_{}", "A".repeat(43));
    eventually("the token has expired", || async { now() >= short.expires_at }).await;

    let mut session = Agent::new(&home).dial(&authority).await;
    let mut messages = Vec::new();
    for token in [short.secret(), &spent, &unknown, "", "cst_", "nonsense"] {
        let status = session.attest_token(token).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        messages.push(status.message().to_owned());
    }
    messages.dedup();
    assert_eq!(messages.len(), 1, "{messages:?}");
    for (reason, count) in [("token_expired", 1), ("token_reused_by_another_key", 1), ("token_unknown", 4)] {
        assert_eq!(home.refused(reason).await, count, "{reason}");
    }
    authority.stop().await;
}

#[tokio::test]
async fn a_registration_that_is_gone_or_asks_for_other_evidence_ends_what_a_token_began() {
    let home = Home::new().await;
    let authority = home.start().await;
    let agent = Agent::new(&home);
    let mut session = agent.dial(&authority).await;
    let unused = home.token("shop/web", 1).await;
    session.attest_token(&home.token("shop/web", 1).await).await.unwrap();
    session.issue().await.unwrap();

    replace(&home.config.workloads, "workloads: []\n");
    let probe = session.clone();
    eventually("the registration is gone", || async { probe.clone().issue().await.is_err() }).await;
    let status = session.issue().await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    assert!(status.message().contains(ID), "{status}");
    assert_eq!(session.attest_enrolled().await.unwrap_err().code(), Code::PermissionDenied);
    let status = Agent::new(&home).dial(&authority).await.attest_token(&unused).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");

    replace(&home.config.workloads, &format!("workloads: [{{id: {WEB}, attest: {{unix: {{uid: 12345}}}}}}]\n"));
    let other = session.clone();
    eventually("the registration asks for unix", || async {
        other.clone().attest_enrolled().await.unwrap_err().message().contains("asks for unix, not join_token")
    })
    .await;

    // The token was not consumed by the refusal.
    replace(&home.config.workloads, crate::support::WORKLOADS);
    let fresh = Agent::new(&home).dial(&authority).await;
    eventually("the registration is back", || async { fresh.clone().attest_token(&unused).await.is_ok() }).await;
    authority.stop().await;
}

#[tokio::test]
async fn the_kernel_vouches_for_a_local_process_as_long_as_its_connection_lives() {
    let uid = rustix::process::geteuid().as_raw();
    let exe = std::env::current_exe().unwrap();
    let workloads = format!(
        "workloads:\n  - {{ id: {WEB}, attest: {{ unix: {{ uid: {uid}, path: {:?} }} }} }}\n  \
         - {{ id: /other, attest: {{ unix: {{ uid: {} }} }} }}\n",
        exe.display().to_string(),
        uid + 1,
    );
    let home = Home::with(|_| {}, &workloads).await;
    let authority = home.start().await;
    let agent = Agent::new(&home);
    let mut session = agent.dial_local(&home).await;
    assert_eq!(session.issue().await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(session.attest_unix().await.unwrap(), ID);
    assert_eq!(session.attest_unix().await.unwrap(), ID);
    session.issue().await.unwrap();
    session.follow().await.unwrap().next().await.unwrap();

    let mut again = agent.dial_local(&home).await;
    assert_eq!(again.issue().await.unwrap_err().code(), Code::Unauthenticated, "each connection attests anew");
    assert_eq!(again.attest_enrolled().await.unwrap_err().code(), Code::Unauthenticated);
    let mut remote = agent.dial(&authority).await;
    assert_eq!(remote.issue().await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(remote.attest_unix().await.unwrap_err().code(), Code::Unauthenticated);

    // The selectors change under the connection.
    replace(&home.config.workloads, &format!("workloads: [{{id: {WEB}, attest: {{unix: {{uid: {}}}}}}}]\n", uid + 1));
    let probe = session.clone();
    eventually("the process matches no more", || async { probe.clone().issue().await.is_err() }).await;
    assert_eq!(session.issue().await.unwrap_err().code(), Code::PermissionDenied);
    assert!(metric("countersign_ca_attested_total{method=\"unix\"}").unwrap() >= 1.0);
    authority.stop().await;
}

#[tokio::test]
async fn a_process_that_matches_several_registrations_or_none_is_refused_with_the_reason() {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let ambiguous = format!(
        "workloads:\n  - {{ id: /a, attest: {{ unix: {{ uid: {uid} }} }} }}\n  - {{ id: /b, attest: {{ unix: {{ gid: {gid} }} }} }}\n"
    );
    let home = Home::with(|_| {}, &ambiguous).await;
    let authority = home.start().await;
    let mut session = Agent::new(&home).dial_local(&home).await;
    let status = session.attest_unix().await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("/a, /b"), "{status}");

    replace(&home.config.workloads, "workloads: [{id: /a, attest: {unix: {path: /no/such/program}}}]\n");
    let probe = session.clone();
    eventually("none matches", || async {
        let status = probe.clone().attest_unix().await.unwrap_err();
        status.message().contains("no registration matches local uid=") && status.code() == Code::PermissionDenied
    })
    .await;
    authority.stop().await;
}

fn now() -> i64 {
    i64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()).unwrap()
}
