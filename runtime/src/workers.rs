//! The threads that carry traffic. Each has a runtime of its own, and a connection stays where it was put: nothing of
//! it is handed from thread to thread, which costs more than the work itself (docs/decisions/014).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The workers of the process; clones share them. They end with the last clone and the last seat.
#[derive(Debug, Clone)]
pub struct Workers(Arc<All>);

/// A connection's place with a worker, until it is dropped.
#[derive(Debug)]
pub struct Seat {
    worker: Arc<Worker>,
    _workers: Workers,
}

#[derive(Debug)]
struct All {
    first: Arc<Worker>,
    others: Vec<Arc<Worker>>,
    /// Who is looked at first, so that equals take turns.
    next: AtomicUsize,
    _end: DropGuard,
}

#[derive(Debug)]
struct Worker {
    number: usize,
    runtime: Handle,
    /// Whether it is another thread than those of the runtime that accepts.
    apart: bool,
    seated: AtomicUsize,
}

impl Workers {
    /// One worker: a runtime that there is already.
    pub fn on(runtime: &Handle) -> Self {
        let first = Arc::new(Worker::new(0, runtime.clone(), false));
        Self::new(first, Vec::new(), CancellationToken::new().drop_guard())
    }

    /// As many threads as `count` says, at least one.
    ///
    /// # Errors
    /// The system gives no thread, or no event queue for it.
    pub fn start(count: usize) -> std::io::Result<Self> {
        // Those that did start end where another does not.
        let ended = CancellationToken::new();
        let end = ended.clone().drop_guard();
        let first = Worker::start(0, ended.clone())?;
        let others = (1..count).map(|number| Worker::start(number, ended.clone()));
        let others = others.collect::<std::io::Result<_>>()?;
        Ok(Self::new(first, others, end))
    }

    fn new(first: Arc<Worker>, others: Vec<Arc<Worker>>, end: DropGuard) -> Self {
        Self(Arc::new(All { first, others, next: AtomicUsize::new(0), _end: end }))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        1 + self.0.others.len()
    }

    /// A seat with the worker that has the fewest; equals take turns.
    pub fn seat(&self) -> Seat {
        let count = self.count();
        let next = self.0.next.fetch_add(1, Ordering::Relaxed) % count;
        let rank = |worker: &Worker| (worker.seated.load(Ordering::Relaxed), (worker.number + count - next) % count);
        let mut best = &self.0.first;
        for worker in &self.0.others {
            if rank(worker) < rank(best) {
                best = worker;
            }
        }
        let worker = Arc::clone(best);
        worker.seated.fetch_add(1, Ordering::Relaxed);
        Seat { worker, _workers: self.clone() }
    }
}

impl Worker {
    fn new(number: usize, runtime: Handle, apart: bool) -> Self {
        Self { number, runtime, apart, seated: AtomicUsize::new(0) }
    }

    fn start(number: usize, end: CancellationToken) -> std::io::Result<Arc<Self>> {
        let (sender, started) = mpsc::sync_channel(1);
        // Made on its own thread: a runtime that has no thread could not be dropped where this is called.
        let carry = move || match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                let _ = sender.send(Ok(runtime.handle().clone()));
                runtime.block_on(end.cancelled());
                runtime.shutdown_background();
            }
            Err(error) => drop(sender.send(Err(error))),
        };
        std::thread::Builder::new().name(format!("worker-{number}")).spawn(carry)?;
        let runtime = started.recv().map_err(std::io::Error::other)??;
        Ok(Arc::new(Self::new(number, runtime, true)))
    }
}

impl Seat {
    /// Which worker it is with, from 0 on.
    pub fn worker(&self) -> usize {
        self.worker.number
    }

    /// The worker's runtime.
    pub fn runtime(&self) -> &Handle {
        &self.worker.runtime
    }

    /// Whether the worker is another thread than those of the runtime that accepts.
    pub fn is_apart(&self) -> bool {
        self.worker.apart
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.worker.seated.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn seats_go_to_the_worker_that_has_the_fewest_and_equals_take_turns() {
        let workers = Workers::start(3).unwrap();
        let mut seats: Vec<_> = (0..6).map(|_| workers.seat()).collect();
        let mut taken: Vec<_> = seats.iter().map(Seat::worker).collect();
        taken.sort_unstable();
        assert_eq!(taken, [0, 0, 1, 1, 2, 2]);
        seats.retain(|seat| seat.worker() != 1);
        assert_eq!([workers.seat(), workers.seat()].map(|seat| seat.worker()), [1, 1]);
    }

    #[test]
    fn each_worker_is_a_thread_of_its_own_that_ends_with_the_workers() {
        let workers = Workers::start(2).unwrap();
        let (sender, receiver) = mpsc::channel();
        let seats = [workers.seat(), workers.seat()];
        for seat in &seats {
            let sender = sender.clone();
            seat.runtime().spawn(async move {
                sender.send(std::thread::current().name().map(str::to_owned)).unwrap();
                // Held until the runtime is gone.
                std::future::pending::<()>().await;
                drop(sender);
            });
        }
        drop(sender);
        let mut names: Vec<_> = (0..2).map(|_| receiver.recv_timeout(LONG).unwrap().unwrap()).collect();
        names.sort_unstable();
        assert_eq!(names, ["worker-0", "worker-1"]);
        drop((seats, workers));
        let ended = receiver.recv_timeout(LONG);
        assert_eq!(ended, Err(mpsc::RecvTimeoutError::Disconnected));
    }

    #[test]
    fn one_worker_is_the_runtime_that_there_is() {
        let runtime = Builder::new_current_thread().build().unwrap();
        let workers = Workers::on(runtime.handle());
        let seat = workers.seat();
        assert_eq!((workers.count(), seat.worker(), seat.is_apart()), (1, 0, false));
    }

    const LONG: Duration = Duration::from_secs(10);
}
