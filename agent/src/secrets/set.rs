//! The files of one `secrets.yaml`, from what their backends have to what the app was told.
//!
//! Invariants: what cannot be fetched, rendered or validated keeps its last good value and hurts no other file;
//! whatever one poll brought appears in one generation.

mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout_at};

use super::SecretsError;
use super::backend::{Backends, FetchError};
use super::config::SecretsConfig;
use super::notify::{Notice, Notifiers, OnChange};
use super::poll::{Update, poll};
use super::publish::{Files, Published, Publisher};
use super::reference::Reference;
use super::template::Values;
use crate::backoff::Backoff;
use state::{FileState, Trouble};

/// The files, with everything that is known about them.
pub(crate) struct Set {
    files: Vec<FileState>,
    backends: Backends,
    /// One task for each reference.
    pollers: JoinSet<()>,
    polled: BTreeMap<Reference, Poll>,
    updates: mpsc::Receiver<Update>,
    /// Given to each poller.
    update: mpsc::Sender<Update>,
    values: Arc<Values>,
    publisher: Publisher,
    publish_again: Option<(tokio::time::Instant, Backoff)>,
    notifiers: Notifiers,
    missing: watch::Sender<Vec<String>>,
    /// Until when the first answers are waited for, so that one generation holds what they bring.
    settling: Option<tokio::time::Instant>,
}

/// What the last poll of a reference brought.
#[derive(Default)]
struct Poll {
    answered: bool,
    /// When it was last known to be current.
    confirmed: Option<Instant>,
    error: Option<FetchError>,
}

/// What ended a wait.
enum Event {
    Polled,
    Acknowledged(Notice),
    PublishAgain,
    Tick,
}

impl Set {
    /// Takes over the directory, with what is in force there.
    pub(crate) fn open(config: &SecretsConfig) -> Result<Self, SecretsError> {
        let (update, updates) = mpsc::channel(UPDATES);
        let publisher = Publisher::open(&config.directory)?;
        let mut set = Self {
            files: Vec::new(),
            backends: Backends::new(config)?,
            pollers: JoinSet::new(),
            polled: BTreeMap::new(),
            updates,
            update,
            values: Arc::default(),
            publisher,
            publish_again: None,
            notifiers: Notifiers::new(),
            missing: watch::Sender::new(Vec::new()),
            settling: None,
        };
        set.configure(config)?;
        metrics::gauge!("countersign_secrets_generation").set(set.publisher.generation() as f64);
        Ok(set)
    }

    /// Takes up another configuration of the same directory. Everything is fetched anew; what is published stays.
    pub(crate) fn configure(&mut self, config: &SecretsConfig) -> Result<(), SecretsError> {
        self.backends = Backends::new(config)?;
        // Dropped with their channel, so that no update of theirs comes in any more.
        self.pollers.abort_all();
        (self.update, self.updates) = mpsc::channel(UPDATES);
        self.polled.clear();
        self.values = Arc::default();
        self.files = config.files.iter().map(|spec| FileState::new(spec.clone())).collect();
        let wanted: Vec<&OnChange> = config.files.iter().filter_map(|file| file.on_change.as_ref()).collect();
        self.notifiers.retain(|target| wanted.contains(&target));
        self.settling = None;
        self.show_missing();
        Ok(())
    }

    /// The secrets that are not published yet, each with the reason.
    pub(crate) fn missing(&self) -> watch::Receiver<Vec<String>> {
        self.missing.subscribe()
    }

    /// Keeps the files up to date, for ever. Safe to cancel, and to call again.
    pub(crate) async fn live(&mut self) {
        self.begin();
        loop {
            self.step().await;
        }
    }

    /// Goes on until every file is published, or what is missing will not mend itself.
    pub(crate) async fn until_settled(&mut self) {
        self.begin();
        loop {
            let settled = self.settling.is_none() && self.publish_again.is_none();
            let missing = !self.missing.borrow().is_empty();
            if settled && (!missing || !self.may_mend_itself()) {
                return;
            }
            self.step().await;
        }
    }

    /// Whether anything that is missing may come without a change to anything.
    pub(crate) fn may_mend_itself(&self) -> bool {
        self.publish_again.is_some() || self.files.iter().any(|file| self.is_missing(file) && file.may_mend_itself())
    }

    fn begin(&mut self) {
        if self.settling.is_none() && self.polled.is_empty() {
            self.settling = Some(tokio::time::Instant::now() + SETTLE);
            let references = self.files.iter().flat_map(|file| file.spec.first_references()).collect();
            self.poll(references);
            self.tell_unacknowledged();
            if self.polled.is_empty() {
                // Nothing to wait for: files that need nothing from anywhere, or none at all.
                self.settling = None;
                self.renew();
            }
        } else {
            // The last run may have been cancelled between an update and what follows from it.
            self.renew();
        }
    }

    /// Waits for what happens next, and does what follows from it.
    async fn step(&mut self) {
        match self.next().await {
            Event::Polled => self.renew(),
            Event::PublishAgain => self.publish(),
            Event::Acknowledged(notice) => self.acknowledged(&notice),
            Event::Tick => {}
        }
        self.publisher.tidy();
        self.show_age();
    }

    async fn next(&mut self) -> Event {
        let again = self.publish_again.as_ref().map(|(at, _)| *at);
        let publish_again = async {
            match again {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(update) = self.updates.recv() => {
                self.take(update);
                self.gather().await;
                Event::Polled
            }
            notice = self.notifiers.acknowledged() => Event::Acknowledged(notice),
            () = publish_again => Event::PublishAgain,
            () = tokio::time::sleep(TICK) => {
                // Nothing answers: what is there is published without the rest.
                let waited_enough = self.settling.take_if(|until| *until <= tokio::time::Instant::now()).is_some();
                if waited_enough { Event::Polled } else { Event::Tick }
            }
        }
    }

    /// Takes further updates that come together with the first, so that they appear together.
    async fn gather(&mut self) {
        let until = tokio::time::Instant::now() + TOGETHER;
        loop {
            let until = match self.settling {
                Some(_) if self.polled.values().all(|poll| poll.answered) => {
                    self.settling = None;
                    return;
                }
                Some(settling) => settling,
                None => until,
            };
            match timeout_at(until, self.updates.recv()).await {
                Ok(Some(update)) => self.take(update),
                _ => {
                    self.settling = None;
                    return;
                }
            }
        }
    }

    fn take(&mut self, update: Update) {
        let Update { reference, outcome } = update;
        let result = match &outcome {
            Ok(Some(_)) => "changed",
            Ok(None) => "unchanged",
            Err(error) => error.kind(),
        };
        for file in self.files.iter_mut().filter(|file| file.needs(&reference)) {
            metrics::counter!("countersign_secrets_fetch_total", "secret" => file.spec.name.clone(), "result" => result)
                .increment(1);
            if matches!(outcome, Ok(Some(_))) {
                file.noticed = Instant::now();
            }
        }
        let poll = self.polled.entry(reference.clone()).or_default();
        poll.answered = true;
        match outcome {
            Ok(fetched) => {
                poll.confirmed = Some(Instant::now());
                poll.error = None;
                if let Some(fetched) = fetched {
                    Arc::make_mut(&mut self.values).insert(reference, fetched);
                }
            }
            Err(error) => poll.error = Some(error),
        }
    }

    /// Renders and validates every file anew, and publishes what is new of it.
    fn renew(&mut self) {
        let mut asked_for = BTreeSet::new();
        for file in &mut self.files {
            let (asked, rendered) = file.spec.render(&self.values);
            asked_for.extend(asked.iter().cloned());
            file.references.extend(asked);
            let failed = file.references.iter().filter_map(|reference| {
                let error = self.polled.get(reference)?.error.clone()?;
                Some((reference.clone(), error))
            });
            let failed: Vec<_> = failed.collect();
            let published = self.publisher.files().get(&file.spec.name);
            file.take(rendered, failed, published, self.publisher.is_free(&file.spec.name));
        }
        self.poll(asked_for);
        self.publish();
    }

    /// Publishes a generation, where it differs from the one in force, and tells whom it concerns.
    fn publish(&mut self) {
        if self.settling.is_some() {
            return;
        }
        let in_force = self.publisher.files();
        let files = self.files.iter().filter(|file| self.publisher.is_free(&file.spec.name));
        let next: Files = files.filter_map(|file| file.to_publish(in_force)).collect();
        let same = |(name, file): (&String, &Published)| in_force.get(name).is_some_and(|old| old.same_as(file));
        if next.len() == in_force.len() && next.iter().all(same) {
            self.publish_again = None;
            self.show_missing();
            return;
        }
        let changed: BTreeSet<String> = next
            .iter()
            .filter(|(name, file)| in_force.get(*name).is_some_and(|old| old.bytes != file.bytes))
            .map(|(name, _)| name.clone())
            .collect();
        let new: BTreeSet<String> = next
            .iter()
            .filter(|(name, file)| in_force.get(*name).is_none_or(|old| old.bytes != file.bytes))
            .map(|(name, _)| name.clone())
            .collect();
        let unacknowledged = changed.iter().chain(self.publisher.unacknowledged()).cloned().collect();
        match self.publisher.publish(next, unacknowledged) {
            Ok(generation) => self.published(generation, &new),
            Err(error) => {
                let result = if error.is_full() { "full" } else { "failed" };
                metrics::counter!("countersign_secrets_publish_total", "result" => result).increment(1);
                tracing::error!(%error, "secrets cannot be published; the last generation stays in force");
                let mut backoff = match self.publish_again.take() {
                    Some((_, backoff)) => backoff,
                    None => Backoff::new(FIRST_PUBLISH_WAIT, LONGEST_PUBLISH_WAIT),
                };
                self.publish_again = Some((tokio::time::Instant::now() + backoff.next(), backoff));
            }
        }
        self.show_missing();
    }

    fn published(&mut self, generation: u64, new: &BTreeSet<String>) {
        self.publish_again = None;
        metrics::counter!("countersign_secrets_publish_total", "result" => "published").increment(1);
        metrics::gauge!("countersign_secrets_generation").set(generation as f64);
        for file in self.files.iter().filter(|file| new.contains(&file.spec.name)) {
            metrics::histogram!("countersign_secrets_published_seconds").record(file.noticed.elapsed());
        }
        tracing::info!(
            generation,
            directory = %self.publisher.directory().display(),
            files = ?new,
            "published secrets"
        );
        self.tell_unacknowledged();
    }

    /// Tells each target of the files whose change it has not acknowledged.
    fn tell_unacknowledged(&mut self) {
        let generation = self.publisher.generation();
        let mut notices: Vec<(OnChange, Notice)> = Vec::new();
        let mut nobody = BTreeSet::new();
        for name in self.publisher.unacknowledged() {
            let file = self.files.iter().find(|file| file.spec.name == *name);
            let Some((file, target)) = file.and_then(|file| Some((file, file.spec.on_change.as_ref()?))) else {
                nobody.insert(name.clone());
                continue;
            };
            match notices.iter_mut().find(|(known, _)| known == target) {
                Some((_, notice)) => {
                    notice.names.insert(name.clone());
                    notice.noticed = notice.noticed.min(file.noticed);
                }
                None => {
                    let names = BTreeSet::from([name.clone()]);
                    notices.push((target.clone(), Notice { generation, names, noticed: file.noticed }));
                }
            }
        }
        self.publisher.acknowledged(&nobody);
        for (target, notice) in notices {
            self.notifiers.tell(&target, notice);
        }
    }

    /// A notice of an older generation acknowledges nothing: the newer one is on its way.
    fn acknowledged(&mut self, notice: &Notice) {
        if notice.generation == self.publisher.generation() {
            self.publisher.acknowledged(&notice.names);
        }
    }

    /// Starts to poll the references that are not polled yet.
    fn poll(&mut self, references: BTreeSet<Reference>) {
        for reference in references {
            if self.polled.contains_key(&reference) || self.polled.len() >= MAX_REFERENCES {
                continue;
            }
            let files = self.files.iter().filter(|file| file.needs(&reference));
            let refresh = files.map(|file| file.spec.refresh).min().unwrap_or(LONGEST_PUBLISH_WAIT);
            self.polled.insert(reference.clone(), Poll::default());
            self.pollers.spawn(poll(self.backends.clone(), reference, refresh, self.update.clone()));
        }
    }

    fn is_missing(&self, file: &FileState) -> bool {
        !self.publisher.files().contains_key(&file.spec.name)
    }

    fn show_missing(&self) {
        let missing = self.files.iter().filter(|file| self.is_missing(file));
        let missing: Vec<String> =
            missing.map(|file| format!("secret {}: {}", file.spec.name, file.reason())).collect();
        self.missing.send_if_modified(|shown| {
            let changed = *shown != missing;
            *shown = missing;
            changed
        });
    }

    /// How old each published file is: the time since its values were last known to be the backend's.
    fn show_age(&mut self) {
        for file in &mut self.files {
            let confirmed =
                file.references.iter().map(|reference| self.polled.get(reference)?.confirmed).min().flatten();
            // A value that was fetched and refused is not the one that is in force.
            let in_force = confirmed.filter(|_| !matches!(file.trouble, Some(Trouble::Refused(_))));
            file.confirmed = in_force.or(file.confirmed);
            if let Some(confirmed) = file.confirmed {
                metrics::gauge!("countersign_secrets_age_seconds", "secret" => file.spec.name.clone())
                    .set(confirmed.elapsed().as_secs_f64());
            }
        }
    }
}

/// How long the first answers are waited for.
const SETTLE: Duration = Duration::from_secs(3);
/// Updates that come within this time appear in one generation.
const TOGETHER: Duration = Duration::from_millis(50);
/// How often old generations are looked for, and ages are shown.
const TICK: Duration = Duration::from_secs(2);
const FIRST_PUBLISH_WAIT: Duration = Duration::from_secs(1);
const LONGEST_PUBLISH_WAIT: Duration = Duration::from_secs(30);
const UPDATES: usize = 64;
const MAX_REFERENCES: usize = 512;
