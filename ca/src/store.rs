//! What the authority must not forget, in one SQLite file: signing keys, agents, join tokens, the audit.
//!
//! One connection writes and a few read, beside those of other processes (`ca token create`). Every write is a
//! transaction that is on the disk before it counts (`synchronous=FULL`), so that neither a crash nor a full disk
//! leaves half of one behind.

pub(crate) mod agents;
pub(crate) mod audit;
pub(crate) mod revocations;
pub(crate) mod signing_keys;
pub(crate) mod tokens;

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use countersign_identity::{SpiffeId, TrustDomain};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection as _, Row, Sqlite};

/// How long a write waits for one of another process.
const BUSY: Duration = Duration::from_secs(5);

/// How long a caller waits for a connection to the store before it is told to try again.
const ACQUIRE: Duration = Duration::from_secs(5);

/// Connections that read at once.
const READERS: u32 = 2;

/// Why the store did not do what was asked. In every case it holds what it held before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is none: `ca init` makes it.
    #[error("there is no store at {0}; make one with: countersign ca init")]
    Absent(PathBuf),
    /// It cannot be opened, or its tables cannot be brought to this version.
    #[error("the store {path} cannot be opened: {error}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        error: sqlx::Error,
    },
    /// Another version of the program made it, or a migration cannot be applied.
    #[error("the tables of the store {path} cannot be brought to this version: {error}")]
    Migrate {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        error: Box<sqlx::migrate::MigrateError>,
    },
    /// Its tables are not those of this version. Only `ca run` changes them: what merely looks at a store leaves it to
    /// the authority that serves from it.
    #[error(
        "the tables of the store {0} are of another version; the authority brings them to its own: countersign ca run"
    )]
    Version(PathBuf),
    /// It belongs to another trust domain: `ca.yaml` names a wrong directory or a wrong trust domain.
    #[error("the store {path} is that of trust domain {found}, and {expected} is configured")]
    TrustDomain {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: TrustDomain,
    },
    /// The disk is full.
    #[error("the store cannot be written, the disk is full: {0}")]
    Full(#[source] sqlx::Error),
    /// Anything else that SQLite refuses.
    #[error("the store cannot be used: {0}")]
    Use(#[source] sqlx::Error),
    /// A row that cannot have been written by this program.
    #[error("the store holds a {what} that cannot be read: {reason}")]
    Corrupt {
        /// Which kind of row.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|error| error.code()?.parse::<i32>().ok());
        match code {
            Some(SQLITE_FULL) => Self::Full(error),
            _ => Self::Use(error),
        }
    }
}

/// A write under way; nothing of it counts before `commit`.
pub(crate) type Transaction = sqlx::Transaction<'static, Sqlite>;

/// The authority's store.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    writer: SqlitePool,
    reader: SqlitePool,
}

/// The snapshot that was handed out last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Generation {
    pub(crate) number: u64,
    /// SHA-256 of what it holds.
    pub(crate) content: Vec<u8>,
}

impl Store {
    /// Makes a store for `trust_domain` at `path`, where none is.
    pub(crate) async fn create(path: &Path, trust_domain: &TrustDomain) -> Result<Self, StoreError> {
        // SQLite gives its journal the mode of the file, so that nobody else reads either.
        let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        made.map_err(|error| StoreError::Open { path: path.to_owned(), error: error.into() })?;
        let store = Self::connect(path).await?;
        store.migrate(path).await?;
        sqlx::query("INSERT INTO authority (one, trust_domain, generation, content) VALUES (1, ?, 0, x'')")
            .bind(trust_domain.as_str())
            .execute(&store.writer)
            .await?;
        Ok(store)
    }

    /// Opens the store of `trust_domain`, with its tables as they are.
    pub(crate) async fn open(path: &Path, trust_domain: &TrustDomain) -> Result<Self, StoreError> {
        let store = Self::there(path).await?;
        if !store.is_of_this_version().await? {
            store.close().await;
            return Err(StoreError::Version(path.to_owned()));
        }
        store.of(path, trust_domain).await
    }

    /// Opens the store of `trust_domain` to serve from it, and brings its tables to this version.
    pub(crate) async fn open_to_serve(path: &Path, trust_domain: &TrustDomain) -> Result<Self, StoreError> {
        let store = Self::there(path).await?;
        store.migrate(path).await?;
        store.of(path, trust_domain).await
    }

    async fn there(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            return Err(StoreError::Absent(path.to_owned()));
        }
        Self::connect(path).await
    }

    /// This store, if it is that of `trust_domain`.
    async fn of(self, path: &Path, trust_domain: &TrustDomain) -> Result<Self, StoreError> {
        let store = self;
        let found: String = sqlx::query_scalar("SELECT trust_domain FROM authority").fetch_one(&store.reader).await?;
        if found == trust_domain.as_str() {
            return Ok(store);
        }
        store.close().await;
        Err(StoreError::TrustDomain { path: path.to_owned(), found, expected: trust_domain.clone() })
    }

    async fn connect(path: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY);
        let failed = |error| StoreError::Open { path: path.to_owned(), error };
        let pool = || SqlitePoolOptions::new().acquire_timeout(ACQUIRE).min_connections(0);
        // SQLite itself ends a transaction that met a full disk, and sqlx then takes its connection for one that is still
        // inside. Such a connection would refuse every later write: it is closed, and a new one opened.
        let writer = pool()
            .max_connections(1)
            .before_acquire(|connection, _| Box::pin(std::future::ready(Ok(!connection.is_in_transaction()))));
        let writer = writer.connect_with(options.clone()).await.map_err(failed)?;
        let reader = pool().max_connections(READERS).connect_with(options).await.map_err(failed)?;
        Ok(Self { writer, reader })
    }

    async fn migrate(&self, path: &Path) -> Result<(), StoreError> {
        let migrated = MIGRATIONS.run(&self.writer).await;
        migrated.map_err(|error| StoreError::Migrate { path: path.to_owned(), error: Box::new(error) })
    }

    /// Whether exactly the migrations of this version were applied.
    async fn is_of_this_version(&self) -> Result<bool, StoreError> {
        let applied: Vec<Vec<u8>> = match sqlx::query_scalar("SELECT checksum FROM _sqlx_migrations ORDER BY version")
            .fetch_all(&self.reader)
            .await
        {
            Ok(applied) => applied,
            // SQLite says "no such table": nothing was ever applied.
            Err(sqlx::Error::Database(_)) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        Ok(applied.iter().map(Vec::as_slice).eq(MIGRATIONS.iter().map(|migration| &*migration.checksum)))
    }

    /// Begins a write that sees no other one until it ends: what it reads is still so when it commits.
    pub(crate) async fn write(&self) -> Result<Transaction, StoreError> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// Where reads go.
    pub(crate) fn reader(&self) -> &SqlitePool {
        &self.reader
    }

    /// The snapshot that was handed out last.
    pub(crate) async fn generation(&self) -> Result<Generation, StoreError> {
        let row = sqlx::query("SELECT generation, content FROM authority").fetch_one(&self.reader).await?;
        Ok(Generation { number: unsigned(row.try_get("generation")?), content: row.try_get("content")? })
    }

    /// Remembers the snapshot that is about to be handed out.
    pub(crate) async fn set_generation(&self, generation: &Generation) -> Result<(), StoreError> {
        let mut write = self.write().await?;
        sqlx::query("UPDATE authority SET generation = ?, content = ?")
            .bind(signed(generation.number))
            .bind(&generation.content)
            .execute(&mut *write)
            .await?;
        Ok(write.commit().await?)
    }

    /// Ends all connections, and leaves one file without a journal where no other process has it open.
    pub(crate) async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }
}

/// A SPIFFE ID as a row of `what` holds it.
pub(crate) fn spiffe_id(what: &'static str, id: String) -> Result<SpiffeId, StoreError> {
    SpiffeId::new(id).map_err(|error| StoreError::Corrupt { what, reason: error.to_string() })
}

/// SQLite's integers are signed; our counts and times are not.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// See [`signed`].
pub(crate) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!();

/// SQLITE_FULL (https://www.sqlite.org/rescode.html#full).
const SQLITE_FULL: i32 = 13;
