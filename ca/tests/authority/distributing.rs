//! Bundle and policy on their way to agents, and what comes back.

use std::time::{Duration, Instant};

use tonic::Code;

use crate::support::{Agent, Following, Home, PROMPT, Session, metric, replace, until};

fn policy(rule: &str) -> String {
    format!(
        "version: 1\ntrust_domain: example.org\nrules:\n  - name: {rule}\n    from: /ns/shop/sa/web\n    \
         to: /ns/shop/sa/orders\n    allow: {{ tcp: true }}\n"
    )
}

async fn attested(home: &Home, authority: &crate::support::Running) -> (Session, Following) {
    let mut session = Agent::new(home).dial(authority).await;
    session.attest_token(&home.token("shop/web", 1).await).await.unwrap();
    let following = session.follow().await.unwrap();
    (session, following)
}

#[tokio::test]
async fn a_changed_policy_reaches_the_agent_within_a_second_and_its_acknowledgement_the_store() {
    let home = Home::new().await;
    let authority = home.start().await;
    let (_session, mut following) = attested(&home, &authority).await;
    let first = following.next().await.unwrap();
    assert_eq!(first.generation, 1);
    assert_eq!(first.bundles.len(), 1);
    assert_eq!(first.bundles[0].trust_domain, "example.org");
    assert_eq!(first.bundles[0].x509_authorities.len(), 1);
    assert!(first.policy_yaml.contains("rules: []"), "as written, comments and all: {}", first.policy_yaml);
    assert!(first.policy_yaml.starts_with('#'));

    let begun = Instant::now();
    replace(home.config.policy.as_ref().unwrap(), &policy("one"));
    let second = following.next().await.unwrap();
    assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
    assert_eq!((second.generation, second.policy_yaml), (2, policy("one")));

    following.acknowledge(2).await;
    until("the acknowledgement is in the store", || async {
        let agent = &countersign_ca::status(&home.config).await.unwrap().agents[0];
        agent.acknowledged == 2 && agent.connected
    })
    .await;
    following.acknowledge(99).await;
    replace(home.config.policy.as_ref().unwrap(), &policy("two"));
    assert_eq!(following.next().await.unwrap().generation, 3);
    let agent = &countersign_ca::status(&home.config).await.unwrap().agents[0];
    assert_eq!(agent.acknowledged, 2, "what does not exist is not acknowledged");
    drop(following);
    until("the agent is gone", || async { !countersign_ca::status(&home.config).await.unwrap().agents[0].connected })
        .await;
    authority.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_the_generation_and_one_with_another_policy_makes_the_next() {
    let home = Home::new().await;
    let authority = home.start().await;
    let agent = Agent::new(&home);
    let mut session = agent.dial(&authority).await;
    session.attest_token(&home.token("shop/web", 1).await).await.unwrap();
    let first = session.follow().await.unwrap().next().await.unwrap();
    authority.stop().await;

    let authority = home.start().await;
    let again = agent.dial(&authority).await.follow().await.unwrap().next().await.unwrap();
    assert_eq!(again, first);
    authority.stop().await;

    replace(home.config.policy.as_ref().unwrap(), &policy("new"));
    let authority = home.start().await;
    let next = agent.dial(&authority).await.follow().await.unwrap().next().await.unwrap();
    assert_eq!(next.generation, first.generation + 1);
    authority.stop().await;
}

#[tokio::test]
async fn a_file_that_is_touched_or_broken_changes_nothing_and_a_broken_one_is_counted() {
    let home = Home::new().await;
    let authority = home.start().await;
    let (mut session, mut following) = attested(&home, &authority).await;
    let first = following.next().await.unwrap();
    let policy_path = home.config.policy.clone().unwrap();
    let failures =
        |file: &str| metric(&format!("countersign_ca_reload_failures_total{{file=\"{file}\"}}")).unwrap_or(0.0);

    replace(&policy_path, &first.policy_yaml);
    assert!(following.is_silent_for(Duration::from_millis(1200)).await, "the same content is no change");

    let (policies, workloads) = (failures("policy"), failures("workloads"));
    for broken in
        ["version: 1\ntrust_domain: example.org\nrulez: []\n", "version: 1\ntrust_domain: example.com\nrules: []\n", ""]
    {
        let before = failures("policy");
        replace(&policy_path, broken);
        until("the broken policy is counted", || async { failures("policy") > before }).await;
    }
    replace(&home.config.workloads, "workloads: [{id: /x}]\n");
    until("the broken registrations are counted", || async { failures("workloads") > workloads }).await;
    std::fs::remove_file(&home.config.workloads).unwrap();
    until("the missing registrations are counted", || async { failures("workloads") > workloads + 1.0 }).await;
    assert!(failures("policy") >= policies + 3.0);
    session.issue().await.unwrap();
    assert!(following.is_silent_for(Duration::from_millis(100)).await);

    replace(&home.config.workloads, crate::support::WORKLOADS);
    replace(&policy_path, &policy("mended"));
    assert_eq!(following.next().await.unwrap().generation, first.generation + 1);
    authority.stop().await;
}

#[tokio::test]
async fn half_a_policy_is_never_handed_out() {
    use std::io::Write as _;
    let home = Home::new().await;
    let authority = home.start().await;
    let (_session, mut following) = attested(&home, &authority).await;
    following.next().await.unwrap();
    let whole =
        policy("allowed") + "  - name: denied\n    from: \"*\"\n    to: /ns/shop/sa/orders\n    deny: { tcp: true }\n";
    let cut = whole.find("  - name: denied").unwrap();

    // Written in place, line by line, as a slow editor does; its first half is a valid policy that lacks the denial.
    let mut file = std::fs::File::create(home.config.policy.as_ref().unwrap()).unwrap();
    file.write_all(&whole.as_bytes()[..cut]).unwrap();
    for byte in &whole.as_bytes()[cut..] {
        // The pace of the editor is what is tested.
        tokio::time::sleep(Duration::from_millis(10)).await;
        file.write_all(&[*byte]).unwrap();
    }
    drop(file);
    let snapshot = following.next().await.unwrap();
    assert_eq!(snapshot.policy_yaml, whole);
    authority.stop().await;
}

#[tokio::test]
async fn an_agent_whose_registration_is_taken_away_is_cut_off() {
    let home = Home::new().await;
    let authority = home.start().await;
    let (mut session, mut following) = attested(&home, &authority).await;
    following.next().await.unwrap();
    replace(&home.config.workloads, "workloads: [{id: /ns/shop/sa/orders, attest: {join_token: {}}}]\n");
    assert_eq!(following.next().await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(session.follow().await.err().unwrap().code(), Code::PermissionDenied);
    authority.stop().await;
}

#[tokio::test]
async fn an_authority_that_stops_says_so_and_the_agent_can_come_back() {
    let home = Home::new().await;
    let authority = home.start().await;
    let (_session, mut following) = attested(&home, &authority).await;
    following.next().await.unwrap();
    let begun = Instant::now();
    authority.stop().await;
    assert_eq!(following.next().await.unwrap_err().code(), Code::Unavailable);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn one_agent_may_not_hold_streams_without_end() {
    let home = Home::new().await;
    let authority = home.start().await;
    let (mut session, mut following) = attested(&home, &authority).await;
    following.next().await.unwrap();
    let mut held = Vec::new();
    let refused = loop {
        match session.follow().await {
            Ok(following) => held.push(following),
            Err(status) => break status,
        }
        assert!(held.len() < 100);
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    drop(held);
    let session = &session;
    until("a place is free again", || async { session.clone().follow().await.is_ok() }).await;
    authority.stop().await;
}
