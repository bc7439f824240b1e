//! Work on files that may hang with its file system: away from the tasks that serve, one piece at a time, and waited for
//! only so long.

use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

/// Does one piece of work after the other on threads for blocking work; never more than one is under way.
#[derive(Debug)]
pub struct Patient<T> {
    /// What has not returned yet. Kept when it takes too long, or when whoever waits for it is cancelled.
    under_way: Option<JoinHandle<T>>,
    patience: Duration,
}

impl<T: Send + 'static> Patient<T> {
    /// With nothing under way.
    pub fn new() -> Self {
        Self { under_way: None, patience: PATIENCE }
    }

    /// The result of `work`. What returns late is thrown away, for it may be old by then. Safe to cancel.
    ///
    /// # Errors
    /// It, or what was begun before it, does not return in time; or it panicked.
    pub async fn run(&mut self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
        let done = timeout(self.patience, async {
            if let Some(late) = &mut self.under_way {
                let _ = late.await;
            }
            let done = self.under_way.insert(spawn_blocking(work)).await;
            self.under_way = None;
            done
        });
        match done.await {
            Ok(done) => done.map_err(|error| error.to_string()),
            Err(_) => Err("the file system does not answer".to_owned()),
        }
    }
}

impl<T: Send + 'static> Default for Patient<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// How long a file system, and who makes something of the file, may take.
const PATIENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;

    use super::*;

    /// On a runtime of one thread: were the work done on it, nothing here would go on.
    #[tokio::test]
    async fn work_that_hangs_is_given_up_not_doubled_and_its_late_result_is_not_taken() {
        let (answer, awaited) = channel::<()>();
        let begun = Arc::new(AtomicUsize::new(0));
        let mut patient = Patient { under_way: None, patience: Duration::from_millis(20) };
        let count = Arc::clone(&begun);
        let hangs = patient.run(move || {
            count.fetch_add(1, Ordering::SeqCst);
            let _ = awaited.recv();
            "old"
        });
        assert!(hangs.await.is_err());
        for _ in 0..3 {
            let count = Arc::clone(&begun);
            let more = patient.run(move || {
                count.fetch_add(1, Ordering::SeqCst);
                "doubled"
            });
            assert!(more.await.is_err());
        }
        assert!(begun.load(Ordering::SeqCst) <= 1);
        answer.send(()).unwrap();
        patient.patience = PATIENCE;
        assert_eq!(patient.run(|| "new").await.unwrap(), "new");
    }
}
