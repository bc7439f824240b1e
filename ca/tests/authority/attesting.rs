//! Join tokens and the kernel's word: who is let in, and who is not.

use std::time::Duration;

use countersign_ca::agents::{self, EvictError};
use sqlx::Connection as _;
use tonic::Code;

use crate::support::{Agent, Home, WEB, metric, replace, until};

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
                assert_eq!(issue.code(), Code::Unauthenticated, "{issue}");
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
    until("the token has expired", || async { now() >= short.expires_at }).await;

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
    until("the registration is gone", || async { probe.clone().issue().await.is_err() }).await;
    let status = session.issue().await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    assert!(status.message().contains(ID), "{status}");
    assert_eq!(session.attest_enrolled().await.unwrap_err().code(), Code::PermissionDenied);
    let status = Agent::new(&home).dial(&authority).await.attest_token(&unused).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");

    replace(&home.config.workloads, &format!("workloads: [{{id: {WEB}, attest: {{unix: {{uid: 12345}}}}}}]\n"));
    let other = session.clone();
    until("the registration asks for unix", || async {
        other.clone().attest_enrolled().await.unwrap_err().message().contains("asks for unix, not join_token")
    })
    .await;

    let audit = home.audit().await;
    let mut refused = audit.iter().filter(|entry| entry.reason.as_deref() == Some("no_registration"));
    assert!(refused.all(|entry| entry.spiffe_id.as_deref() == Some(ID)), "whose is known");
    authority.stop().await;
}

#[tokio::test]
async fn a_registration_that_returns_revives_neither_keys_nor_tokens_and_a_new_token_is_taken() {
    let home = Home::new().await;
    let authority = home.start().await;
    let agent = Agent::new(&home);
    let mut session = agent.dial(&authority).await;
    let (used, unused) = (home.token("shop/web", 2).await, home.token("shop/web", 1).await);
    session.attest_token(&used).await.unwrap();
    session.issue().await.unwrap();

    replace(&home.config.workloads, "workloads: []\n");
    until("its keys are revoked", || async { revoked(&home).await == [Some("unregistered".to_owned())] }).await;
    replace(&home.config.workloads, crate::support::WORKLOADS);
    let probe = session.clone();
    until("the registration is back", || async {
        probe.clone().issue().await.unwrap_err().code() == Code::Unauthenticated
    })
    .await;
    let status = session.attest_enrolled().await.unwrap_err();
    assert!(status.message().contains("attest with a new token"), "{status}");
    for (token, mut session) in [(&used, session.clone()), (&unused, Agent::new(&home).dial(&authority).await)] {
        assert_eq!(session.attest_token(token).await.unwrap_err().code(), Code::Unauthenticated);
    }
    assert_eq!(home.refused("token_revoked").await, 2);
    assert_eq!(home.audit().await.iter().filter(|entry| entry.event == "revoked").count(), 1);

    // The agent comes back with the key that it kept.
    session.attest_token(&home.token("shop/web", 1).await).await.unwrap();
    session.issue().await.unwrap();
    assert_eq!(revoked(&home).await, [None]);
    authority.stop().await;
}

#[tokio::test]
async fn registrations_that_went_while_the_authority_was_down_end_their_keys_at_its_start() {
    let home = Home::new().await;
    let authority = home.start().await;
    let agent = Agent::new(&home);
    agent.dial(&authority).await.attest_token(&home.token("shop/web", 1).await).await.unwrap();
    authority.stop().await;

    replace(&home.config.workloads, "workloads: []\n");
    home.start().await.stop().await;
    replace(&home.config.workloads, crate::support::WORKLOADS);
    let authority = home.start().await;
    let status = agent.dial(&authority).await.issue().await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    authority.stop().await;
}

#[tokio::test]
async fn an_evicted_agent_loses_its_stream_and_gets_in_with_no_token_until_it_has_a_new_key() {
    let home = Home::new().await;
    let authority = home.start().await;
    let agent = Agent::new(&home);
    let mut session = agent.dial(&authority).await;
    let token = home.token("shop/web", 2).await;
    session.attest_token(&token).await.unwrap();
    let mut following = session.follow().await.unwrap();
    following.next().await.unwrap();

    let thumbprint = countersign_ca::status(&home.config).await.unwrap().agents[0].thumbprint.clone();
    let evicted = agents::evict(&home.config, &thumbprint[..12].to_uppercase()).await.unwrap();
    assert_eq!((evicted.thumbprint, evicted.spiffe_id.as_str()), (thumbprint.clone(), ID));
    let end = following.next().await.unwrap_err();
    assert_eq!(end.code(), Code::Unauthenticated, "{end}");
    assert!(end.message().contains("evicted"), "{end}");
    assert_eq!(session.issue().await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(session.attest_enrolled().await.unwrap_err().code(), Code::Unauthenticated);
    for token in [&token, &home.token("shop/web", 1).await] {
        let status = agent.dial(&authority).await.attest_token(token).await.unwrap_err();
        assert!(status.message().contains("evicted"), "{status}");
    }
    let mut stranger = Agent::new(&home).dial(&authority).await;
    assert_eq!(stranger.attest_token(&token).await.unwrap_err().code(), Code::Unauthenticated, "it knew that token");
    stranger.attest_token(&home.token("shop/web", 1).await).await.unwrap();

    agents::evict(&home.config, &thumbprint).await.unwrap();
    let audit = home.audit().await;
    let rows: Vec<_> = audit.iter().filter(|entry| entry.event == "agent_evicted").collect();
    assert_eq!(rows.len(), 1, "once");
    assert_eq!((rows[0].thumbprint.as_ref(), rows[0].spiffe_id.as_deref()), (Some(&thumbprint), Some(ID)));
    authority.stop().await;
}

#[tokio::test]
async fn an_eviction_names_one_agent_or_nobody_is_evicted() {
    let home = Home::new().await;
    let authority = home.start().await;
    Agent::new(&home).dial(&authority).await.attest_token(&home.token("shop/web", 1).await).await.unwrap();
    let thumbprint = countersign_ca::status(&home.config).await.unwrap().agents[0].thumbprint.clone();
    for bad in ["", &thumbprint[..7], "not-hexadecimal", &format!("{thumbprint}0")] {
        let error = agents::evict(&home.config, bad).await.unwrap_err();
        assert!(matches!(error, EvictError::Thumbprint(_)), "{bad}: {error}");
    }
    let other = if thumbprint.starts_with('0') { "1" } else { "0" }.repeat(8);
    assert!(matches!(agents::evict(&home.config, &other).await, Err(EvictError::Unknown(_))));

    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(home.path("authority.db"));
    let mut database = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    let twin = format!("{}{}", &thumbprint[..16], "0".repeat(48));
    sqlx::query(
        "INSERT INTO agents (thumbprint, spiffe_id, method, first_seen, last_seen) VALUES (?, ?, 'unix', 0, 0)",
    )
    .bind(twin)
    .bind(ID)
    .execute(&mut database)
    .await
    .unwrap();
    assert!(matches!(agents::evict(&home.config, &thumbprint[..16]).await, Err(EvictError::Ambiguous(_))));
    assert_eq!(revoked(&home).await, [None, None]);
    agents::evict(&home.config, &thumbprint).await.unwrap();
    authority.stop().await;
}

#[tokio::test]
async fn a_registration_that_is_renamed_is_taken_up_on_the_same_connection() {
    let uid = rustix::process::geteuid().as_raw();
    let workloads = |id: &str| format!("workloads: [{{id: {id}, attest: {{unix: {{uid: {uid}}}}}}}]\n");
    let home = Home::with(|_| {}, &workloads("/old")).await;
    let authority = home.start().await;
    let mut session = Agent::new(&home).dial_local(&home).await;
    assert_eq!(session.attest_unix().await.unwrap(), "spiffe://example.org/old");
    replace(&home.config.workloads, &workloads("/new"));
    let probe = session.clone();
    until("the new name is known", || async {
        probe.clone().attest_unix().await.unwrap() == "spiffe://example.org/new"
    })
    .await;
    session.issue().await.unwrap();
    let audit = home.audit().await;
    let issued = audit.iter().rfind(|entry| entry.event == "issued").unwrap();
    assert_eq!(issued.spiffe_id.as_deref(), Some("spiffe://example.org/new"));
    authority.stop().await;
}

#[tokio::test]
async fn one_local_user_has_so_many_connections_and_gets_a_new_one_for_each_that_ends() {
    use tokio::io::AsyncReadExt;
    let home = Home::new().await;
    let authority = home.start().await;
    let dial = async || tokio::net::UnixStream::connect(&home.config.socket).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..64 {
        held.push(dial().await);
    }
    assert_eq!(dial().await.read(&mut [0; 1]).await.unwrap_or(0), 0, "one too many is closed at once");
    Agent::new(&home).dial(&authority).await.attest_token(&home.token("shop/web", 1).await).await.unwrap();
    drop(held);
    let agent = Agent::new(&home);
    until("there is room again", || async {
        agent.try_dial(crate::support::Target::Local(home.config.socket.clone())).await.is_ok()
    })
    .await;
    authority.stop().await;
}

/// Why each agent's key is revoked, if it is.
async fn revoked(home: &Home) -> Vec<Option<String>> {
    let agents = countersign_ca::status(&home.config).await.unwrap().agents;
    agents.into_iter().map(|agent| agent.revoked_for).collect()
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
    until("the process matches no more", || async { probe.clone().issue().await.is_err() }).await;
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

    let none = format!("workloads: [{{id: /a, attest: {{unix: {{uid: {uid}, path: /no/such/program}}}}}}]\n");
    replace(&home.config.workloads, &none);
    let probe = session.clone();
    until("none matches", || async {
        let status = probe.clone().attest_unix().await.unwrap_err();
        status.message().contains("no registration matches local uid=") && status.code() == Code::PermissionDenied
    })
    .await;
    authority.stop().await;
}

fn now() -> i64 {
    i64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()).unwrap()
}
