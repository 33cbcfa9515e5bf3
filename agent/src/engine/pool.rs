//! Worker threads that run models, so that no inference ever blocks the async world.
//!
//! A bounded queue in front: when it is full the caller hears so at once, with an estimate of when to
//! come back, instead of waiting for an answer that comes too late. A panic in a model costs that one
//! job. A future that is dropped before its job starts takes the job with it.

use super::{LoadedModel, RunError, panic_text};
use edgefleet_shared::tensor::Tensor;
use parking_lot::{Condvar, Mutex};
use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// Shortest and longest advice in [`PoolError::QueueFull`]: below, a client would spin; above, it
/// would give up on a device that is merely busy.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));

/// Outputs of one run and where its time went.
#[derive(Debug)]
pub struct Answer {
    /// In the order of the interface.
    pub outputs: Vec<Tensor>,
    /// From submission until a worker took the job.
    pub queue: Duration,
    /// Inside the model.
    pub infer: Duration,
}

/// Why a job has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    #[error("all {bound} places of the inference queue are taken; try again in {} ms", retry_after.as_millis())]
    QueueFull { bound: usize, retry_after: Duration },
    #[error("inference has stopped: the agent is shutting down")]
    Stopped,
    #[error(transparent)]
    Run(#[from] RunError),
}

/// A fixed set of threads behind one bounded queue. Dropped, it takes no more; the threads end by
/// themselves, and a model that hangs does not hold up whoever drops it.
pub struct WorkerPool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    bound: usize,
    workers: usize,
    /// Moving mean of the time inside models, in nanoseconds; 0 until the first run.
    mean_nanos: AtomicU64,
}

struct Queue {
    jobs: VecDeque<Job>,
    open: bool,
}

struct Job {
    model: Arc<dyn LoadedModel>,
    inputs: Vec<Tensor>,
    queued: Instant,
    answer: oneshot::Sender<Result<Answer, PoolError>>,
}

impl WorkerPool {
    /// Starts `threads` workers (at least one). `queue_bound` jobs may wait besides those that run.
    ///
    /// # Errors
    /// The system refused a thread.
    pub fn new(threads: usize, queue_bound: usize) -> io::Result<Self> {
        let workers = threads.max(1);
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue { jobs: VecDeque::new(), open: true }),
            wake: Condvar::new(),
            bound: queue_bound.max(1),
            workers,
            mean_nanos: AtomicU64::new(0),
        });
        let pool = Self { shared, threads: Mutex::new(Vec::new()) };
        for number in 0..workers {
            let shared = pool.shared.clone();
            let name = format!("infer-{number}");
            pool.threads.lock().push(std::thread::Builder::new().name(name).spawn(move || shared.work())?);
        }
        Ok(pool)
    }

    /// Queues one run at once, before the future is first polled.
    ///
    /// # Errors
    /// [`PoolError`]; the future never panics.
    pub fn run(
        &self,
        model: Arc<dyn LoadedModel>,
        inputs: Vec<Tensor>,
    ) -> impl Future<Output = Result<Answer, PoolError>> + Send + use<> {
        let queued = self.submit(model, inputs);
        async move { queued?.await.unwrap_or(Err(PoolError::Stopped)) }
    }

    fn submit(
        &self,
        model: Arc<dyn LoadedModel>,
        inputs: Vec<Tensor>,
    ) -> Result<oneshot::Receiver<Result<Answer, PoolError>>, PoolError> {
        let (answer, receiver) = oneshot::channel();
        let job = Job { model, inputs, queued: Instant::now(), answer };
        let mut queue = self.shared.queue.lock();
        if !queue.open {
            return Err(PoolError::Stopped);
        }
        if queue.jobs.len() >= self.shared.bound {
            // Abandoned jobs hold places only until someone needs them.
            queue.jobs.retain(|job| !job.answer.is_closed());
        }
        if queue.jobs.len() >= self.shared.bound {
            let retry_after = self.shared.retry_after(queue.jobs.len());
            return Err(PoolError::QueueFull { bound: self.shared.bound, retry_after });
        }
        queue.jobs.push_back(job);
        drop(queue);
        self.shared.wake.notify_one();
        Ok(receiver)
    }

    /// Jobs that wait for a worker.
    pub fn waiting(&self) -> usize {
        self.shared.queue.lock().jobs.len()
    }

    /// Refuses new jobs, finishes those queued, ends the workers. Blocks until then; idempotent.
    pub fn shutdown(&self) {
        self.close();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            // A worker cannot panic: every job runs under catch_unwind.
            let _ = thread.join();
        }
    }
}

impl WorkerPool {
    fn close(&self) {
        self.shared.queue.lock().open = false;
        self.shared.wake.notify_all();
    }
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn work(&self) {
        while let Some(job) = self.next() {
            if job.answer.is_closed() {
                continue;
            }
            let started = Instant::now();
            let queue = started - job.queued;
            let result = catch_unwind(AssertUnwindSafe(|| job.model.run(&job.inputs)));
            let infer = started.elapsed();
            self.learn(infer);
            let result = result.unwrap_or_else(|panic| {
                Err(RunError::Engine(format!("the engine panicked: {}", panic_text(&*panic))))
            });
            let answer = result.map(|outputs| Answer { outputs, queue, infer }).map_err(PoolError::Run);
            // Nobody waits any more: nothing to tell.
            let _ = job.answer.send(answer);
        }
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if !queue.open {
                return None;
            }
            self.wake.wait(&mut queue);
        }
    }

    /// Weighs the newest run 1/8. Workers may overwrite each other's step: it is an estimate.
    fn learn(&self, infer: Duration) {
        let new = u64::try_from(infer.as_nanos()).unwrap_or(u64::MAX);
        let old = self.mean_nanos.load(Ordering::Relaxed);
        let mean = if old == 0 { new } else { old - old / 8 + new / 8 };
        self.mean_nanos.store(mean, Ordering::Relaxed);
    }

    /// Time until the queue has been worked off once.
    fn retry_after(&self, waiting: usize) -> Duration {
        let mean = self.mean_nanos.load(Ordering::Relaxed);
        let nanos = mean.saturating_mul(waiting as u64 + 1) / self.workers as u64;
        Duration::from_nanos(nanos).clamp(RETRY_AFTER.0, RETRY_AFTER.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Barrier, atomic::AtomicUsize};

    /// Waits at `gate` if it has one, then counts; panics on request.
    struct Fake {
        gate: Option<Arc<Barrier>>,
        runs: AtomicUsize,
        panics: bool,
    }
    impl Fake {
        fn new(gate: Option<Arc<Barrier>>, panics: bool) -> Arc<Self> {
            Arc::new(Self { gate, runs: AtomicUsize::new(0), panics })
        }
        fn runs(&self) -> usize {
            self.runs.load(Ordering::SeqCst)
        }
    }
    impl LoadedModel for Fake {
        fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
            if let Some(gate) = &self.gate {
                gate.wait(); // taken
                gate.wait(); // released
            }
            assert!(!self.panics, "told to");
            self.runs.fetch_add(1, Ordering::SeqCst);
            Ok(inputs.to_vec())
        }
    }

    #[tokio::test]
    async fn a_full_queue_answers_at_once_and_a_dropped_future_takes_its_job_along() {
        let pool = WorkerPool::new(1, 2).unwrap();
        let gate = Arc::new(Barrier::new(2));
        let (slow, quick) = (Fake::new(Some(gate.clone()), false), Fake::new(None, false));
        let running = pool.run(slow.clone(), vec![]);
        gate.wait(); // the worker is inside the model now
        let dropped = pool.run(quick.clone(), vec![]);
        let kept = pool.run(quick.clone(), vec![]);
        let refused = pool.run(quick.clone(), vec![]).await;
        assert!(matches!(refused, Err(PoolError::QueueFull { bound: 2, .. })), "{refused:?}");
        drop(dropped);
        let takes_the_free_place = pool.run(quick.clone(), vec![]);
        gate.wait();
        running.await.unwrap();
        kept.await.unwrap();
        takes_the_free_place.await.unwrap();
        assert_eq!((slow.runs(), quick.runs()), (1, 2));
    }

    #[tokio::test]
    async fn a_panic_costs_one_job_and_the_worker_goes_on() {
        let pool = WorkerPool::new(1, 8).unwrap();
        let error = pool.run(Fake::new(None, true), vec![]).await.unwrap_err();
        assert_eq!(error, PoolError::Run(RunError::Engine("the engine panicked: told to".into())));
        let answer = pool.run(Fake::new(None, false), vec![]).await.unwrap();
        assert!(answer.outputs.is_empty());
    }

    #[tokio::test]
    async fn shutdown_finishes_what_was_queued_and_refuses_the_rest() {
        let pool = WorkerPool::new(2, 64).unwrap();
        let model = Fake::new(None, false);
        let jobs: Vec<_> = (0..64).map(|_| pool.run(model.clone(), vec![])).collect();
        let accepted = futures::future::join_all(jobs);
        pool.shutdown();
        let served = accepted.await.into_iter().filter(Result::is_ok).count();
        assert_eq!(served, model.runs());
        assert!(served > 0);
        assert_eq!(pool.run(model, vec![]).await.unwrap_err(), PoolError::Stopped);
    }
}
