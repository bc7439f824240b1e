//! What the authority keeps: keys, rows and files, through wrong keys, full disks, killed inits and rivals.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use countersign_ca::{Init, InitError, KeyError, KeySource, RunError, audit, init};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tonic::Code;

use crate::support::{Agent, DEADLINE, Home, trust_domain, until};

async fn database(home: &Home) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(home.path("authority.db")).busy_timeout(Duration::from_secs(5));
    SqliteConnection::connect_with(&options).await.unwrap()
}

#[tokio::test]
async fn a_wrong_key_encryption_key_is_a_clear_error_and_leaves_the_store_alone() {
    let home = Home::new().await;
    let store = std::fs::read(home.path("authority.db")).unwrap();
    let key = std::fs::read_to_string(home.path("authority.key")).unwrap();
    std::fs::write(home.path("authority.key"), "00".repeat(32)).unwrap();
    let Err(error) = home.try_start().await else { panic!("it started") };
    let message = error.to_string();
    assert!(message.contains("is not the one that sealed it"), "{message}");
    assert!(message.contains("key"), "{message}");
    assert!(std::fs::read(home.path("authority.db")).unwrap() == store, "the store is as it was");

    std::fs::write(home.path("authority.key"), key).unwrap();
    home.start().await.stop().await;
}

#[tokio::test]
async fn a_key_file_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new().await;
    std::fs::set_permissions(home.path("authority.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let Err(RunError::Key(KeyError::Exposed { .. })) = home.try_start().await else { panic!("it is read") };
}

#[tokio::test]
async fn the_private_key_is_not_in_the_store() {
    let home = Home::new().await;
    let store = std::fs::read(home.path("authority.db")).unwrap();
    // The PKCS #8 head of a P-256 key: version, and the algorithm.
    let head = [0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    assert!(!store.windows(head.len()).any(|bytes| bytes == head));
}

#[tokio::test]
async fn with_no_room_left_issuing_stops_cleanly_and_resumes() {
    let Some(disk) = SmallDisk::new("keeping::with_no_room_left_issuing_stops_cleanly_and_resumes") else { return };
    let mut home = Home::new().await;
    disk.move_in(&mut home);
    let authority = home.start().await;
    let mut session = Agent::new(&home).dial(&authority).await;
    session.attest_token(&home.token("shop/web", 1).await).await.unwrap();
    session.issue().await.unwrap();

    disk.fill();
    let mut issued = 0;
    let begun = std::time::Instant::now();
    let refused = loop {
        match session.issue().await {
            Ok(_) => issued += 1,
            Err(status) if status.code() == Code::ResourceExhausted => {
                // The pace of one who was told that it asks too often.
                tokio::time::sleep(Duration::from_millis(50)).await
            }
            Err(status) => break status,
        }
        assert!(issued < 1000 && begun.elapsed() < DEADLINE, "the disk is never full");
    };
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("try again later"), "{refused}");
    let rows = home.audit().await.len();
    assert_eq!(audit::verify(&home.config).await.unwrap().rows, i64::try_from(rows).unwrap(), "nothing is corrupt");
    assert_eq!(session.issue().await.unwrap_err().code(), Code::Unavailable, "still");

    disk.make_room();
    let session = &session;
    until("issuing resumes", || async { session.clone().issue().await.is_ok() }).await;
    let verified = audit::verify(&home.config).await.unwrap();
    assert!(verified.rows > i64::try_from(rows).unwrap());
    authority.stop().await;
    home.start().await.stop().await;
}

#[tokio::test]
async fn the_audit_cannot_be_changed_and_a_change_behind_its_back_is_found() {
    let home = Home::new().await;
    home.start().await.stop().await;
    home.token("shop/web", 1).await;
    let good = audit::verify(&home.config).await.unwrap();
    assert_eq!(good.rows, 3);

    let mut database = database(&home).await;
    for attempt in [
        "UPDATE audit SET source = 'x'",
        "DELETE FROM audit WHERE sequence = 2",
        "INSERT OR REPLACE INTO audit (sequence, at_ms, event, source, previous, hash) VALUES (2, 0, 'x', 'x', x'', x'')",
    ] {
        let error = sqlx::query(attempt).execute(&mut database).await.unwrap_err();
        assert!(error.to_string().contains("append-only"), "{error}");
    }
    sqlx::raw_sql("DROP TRIGGER audit_is_never_updated; UPDATE audit SET spiffe_id = 'x' WHERE sequence = 2")
        .execute(&mut database)
        .await
        .unwrap();
    assert!(matches!(audit::verify(&home.config).await, Err(audit::AuditError::Altered(2))));
    sqlx::raw_sql("DROP TRIGGER audit_is_never_deleted; DELETE FROM audit WHERE sequence = 2")
        .execute(&mut database)
        .await
        .unwrap();
    assert!(matches!(audit::verify(&home.config).await, Err(audit::AuditError::Gap { after: 1, found: 3 })));
}

#[tokio::test]
async fn a_certificate_that_is_not_of_a_sealed_key_is_never_trusted() {
    let home = Home::new().await;
    let other = Home::new().await;
    let mut database = database(&home).await;
    let mut foreign: SqliteConnection = self::database(&other).await;
    let (certificate, sealed): (Vec<u8>, Vec<u8>) =
        sqlx::query_as("SELECT certificate, sealed_key FROM signing_keys").fetch_one(&mut foreign).await.unwrap();

    // Another authority's key, which this key-encryption key does not open.
    let insert = "INSERT INTO signing_keys VALUES ('0', 'prepared', ?, ?, 0)";
    sqlx::query(insert).bind(&certificate).bind(&sealed).execute(&mut database).await.unwrap();
    let message = home.try_start().await.err().unwrap().to_string();
    assert!(message.contains("does not open signing key 0"), "{message}");

    // Retired, it is not trusted, and does no harm.
    sqlx::query("UPDATE signing_keys SET state = 'retired' WHERE id = '0'").execute(&mut database).await.unwrap();
    home.start().await.stop().await;

    // The right key, under a foreign certificate.
    let swap = "UPDATE signing_keys SET certificate = ? WHERE state = 'active'";
    sqlx::query(swap).bind(&certificate).execute(&mut database).await.unwrap();
    let message = home.try_start().await.err().unwrap().to_string();
    assert!(message.contains("it is not of signing key"), "{message}");
}

#[tokio::test]
async fn a_store_of_another_version_is_left_alone_by_whatever_only_looks_at_it() {
    let home = Home::new().await;
    let mut database = database(&home).await;
    sqlx::query("UPDATE _sqlx_migrations SET checksum = x'00'").execute(&mut database).await.unwrap();
    let message = countersign_ca::status(&home.config).await.unwrap_err().to_string();
    assert!(message.contains("of another version") && message.contains("countersign ca run"), "{message}");

    std::fs::create_dir(home.path("empty")).unwrap();
    std::fs::write(home.path("empty/authority.db"), "").unwrap();
    let config = countersign_ca::Config { directory: home.path("empty"), ..home.config.clone() };
    let message = audit::read(&config, 0, 1).await.unwrap_err().to_string();
    assert!(message.contains("of another version"), "{message}");
    let options = SqliteConnectOptions::new().filename(home.path("empty/authority.db"));
    let mut looked_at = SqliteConnection::connect_with(&options).await.unwrap();
    let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema").fetch_one(&mut looked_at).await.unwrap();
    assert_eq!(tables, 0);
}

#[tokio::test]
async fn two_authorities_do_not_share_a_directory() {
    let home = Home::new().await;
    let authority = home.start().await;
    let Err(RunError::InUse(_)) = home.try_start().await else { panic!("a second one started") };
    let error = init(&Init::new(home.path(""), trust_domain())).await.unwrap_err();
    assert!(matches!(error, InitError::InUse(_)), "{error}");
    authority.stop().await;
    home.start().await.stop().await;
}

#[tokio::test]
async fn init_overwrites_nothing() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["authority.key", "authority.db", "bundle.pem", "ca.yaml", "workloads.yaml", "policy.yaml"] {
        let at = directory.path().join(name.replace('.', "-"));
        std::fs::create_dir(&at).unwrap();
        std::fs::write(at.join(name), "precious").unwrap();
        let error = init(&Init::new(&at, trust_domain())).await.unwrap_err();
        assert!(matches!(error, InitError::AlreadyThere(_)), "{name}: {error}");
        assert_eq!(std::fs::read_to_string(at.join(name)).unwrap(), "precious");
        assert_eq!(std::fs::read_dir(&at).unwrap().count(), 1, "{name}: nothing else was left");
    }
}

#[tokio::test]
async fn an_init_that_was_killed_can_be_run_again() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().join("ca");
    let options = Init::new(&at, trust_domain());
    // Killed before everything was made: what is there is thrown away.
    std::fs::create_dir_all(at.join(".init")).unwrap();
    std::fs::write(at.join(".init/authority.key"), "half").unwrap();
    let made = init(&options).await.unwrap();
    assert!(!at.join(".init").exists());

    // Killed in the middle of the move: the rest is moved, and nothing is made anew.
    let staging = at.join(".init");
    std::fs::create_dir(&staging).unwrap();
    for name in ["bundle.pem", "workloads.yaml", "policy.yaml", "ca.yaml"] {
        std::fs::rename(at.join(name), staging.join(name)).unwrap();
    }
    std::fs::write(staging.join("complete"), "").unwrap();
    assert_eq!(init(&options).await.unwrap(), made);
    assert!(!staging.exists());
    assert!(matches!(init(&options).await, Err(InitError::AlreadyThere(_))));
}

#[tokio::test]
async fn what_init_makes_is_private_right_and_runs() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("my \"key\"");
    std::fs::write(&key, "42".repeat(32)).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let at = directory.path().join("deep/ca");
    let mut options = Init::new(&at, trust_domain());
    options.key = Some(KeySource::File(key.clone()));
    options.dns = vec!["ca".into(), "ca.internal".into()];
    options.listen = "127.0.0.1:9443".parse().unwrap();
    let made = init(&options).await.unwrap();

    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&at), 0o700);
    assert!(!at.join("authority.key").exists(), "one was given");
    let config = countersign_ca::Config::load(&made.config).unwrap();
    assert_eq!(config.key, KeySource::File(key.canonicalize().unwrap()));
    assert_eq!((config.dns.len(), config.listen), (2, options.listen));
    assert_eq!(config.socket, at.join("authority.sock"));

    let second = directory.path().join("second");
    init(&Init::new(&second, trust_domain())).await.unwrap();
    assert_eq!(mode(&second.join("authority.key")), 0o600);
    assert_eq!(mode(&second.join("authority.db")), 0o600);
    options.directory = directory.path().join("third");
    options.dns = vec!["Not A Name".into()];
    assert!(matches!(init(&options).await, Err(InitError::Dns(_))));
    assert!(!options.directory.exists());
}

#[tokio::test]
async fn the_examples_that_init_writes_are_right_once_uncommented() {
    let home = Home::new().await;
    let made = home.directory.path().join("made");
    init(&Init::new(&made, trust_domain())).await.unwrap();
    let example = |name: &str| -> String {
        let text = std::fs::read_to_string(made.join(name)).unwrap();
        let lines = text.lines().filter_map(|line| line.strip_prefix("# "));
        let example = lines.filter(|line| line.starts_with("  ") || (line.ends_with(':') && !line.contains(' ')));
        example.map(|line| format!("{line}\n")).collect()
    };
    let workloads = countersign_ca::Registrations::parse("w", &example("workloads.yaml"), &trust_domain()).unwrap();
    assert_eq!(workloads.len(), 2);
    let policy = format!("version: 1\ntrust_domain: example.org\n{}", example("policy.yaml"));
    countersign_policy::Policy::parse("p", &policy).unwrap();
    assert!(std::fs::read_to_string(made.join("ca.yaml")).unwrap().contains("key: { file: authority.key }"));
}

#[tokio::test]
async fn a_store_of_another_trust_domain_or_none_is_refused() {
    let mut home = Home::new().await;
    home.config.trust_domain = countersign_identity::TrustDomain::new("example.com").unwrap();
    home.config.policy = None;
    std::fs::write(&home.config.workloads, "workloads: []\n").unwrap();
    let message = home.try_start().await.err().unwrap().to_string();
    assert!(message.contains("example.org") && message.contains("example.com"), "{message}");
    home.config.directory = home.directory.path().to_owned();
    let message = home.try_start().await.err().unwrap().to_string();
    assert!(message.contains("countersign ca init"), "{message}");
}

/// A disk that can be full: a small tmpfs where the test may mount one, and else a limit on the size of its files.
enum SmallDisk {
    Mounted(tempfile::TempDir),
    Limited(tempfile::TempDir),
}

/// Set in a process of this test alone, which ignores the signal that a file beyond its limit raises.
const ALONE: &str = "COUNTERSIGN_TEST_ALONE";

impl SmallDisk {
    /// `None` where the test `name` ran to its good end in a process of its own.
    fn new(name: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs"]).arg(directory.path());
        if rustix::process::geteuid().is_root() && mount.status().is_ok_and(|status| status.success()) {
            return Some(Self::Mounted(directory));
        }
        if std::env::var_os(ALONE).is_some() {
            return Some(Self::Limited(directory));
        }
        let status = Command::new("sh")
            .args(["-c", "trap '' XFSZ; exec \"$0\" --exact \"$1\" --nocapture"])
            .arg(std::env::current_exe().unwrap())
            .arg(name)
            .env(ALONE, "1")
            .status()
            .unwrap();
        assert!(status.success(), "{name} failed in a process of its own");
        None
    }

    fn path(&self) -> &Path {
        match self {
            Self::Mounted(directory) | Self::Limited(directory) => directory.path(),
        }
    }

    /// Moves the store of `home` onto this disk.
    fn move_in(&self, home: &mut Home) {
        let directory = self.path().join("state");
        std::fs::create_dir(&directory).unwrap();
        std::fs::copy(home.path("authority.db"), directory.join("authority.db")).unwrap();
        home.config.directory = directory;
    }

    fn fill(&self) {
        use std::io::Write as _;
        match self {
            Self::Mounted(directory) => {
                let mut file = std::fs::File::create(directory.path().join("ballast")).unwrap();
                while file.write(&[0; 512]).is_ok_and(|written| written > 0) {}
            }
            Self::Limited(directory) => {
                let journal = std::fs::metadata(directory.path().join("state/authority.db-wal")).unwrap().len();
                limit_files(Some(journal));
            }
        }
    }

    fn make_room(&self) {
        match self {
            Self::Mounted(directory) => std::fs::remove_file(directory.path().join("ballast")).unwrap(),
            Self::Limited(_) => limit_files(None),
        }
    }
}

fn limit_files(size: Option<u64>) {
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: size.or(maximum), maximum }).unwrap();
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Self::Mounted(directory) = self {
            let _ = Command::new("umount").arg("-l").arg(directory.path()).status();
        }
    }
}
