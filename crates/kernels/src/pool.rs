//! The thread pool: each thread takes the small tasks of its share of a job in order, then those that others have not begun; idle
//! threads spin briefly, then park.
//!
//! Shares are consecutive, so that a thread reads consecutive memory, and what it asks for ahead of its use is its own.
//! A task's result never depends on which thread runs it, so the number of threads changes no bit of any result.
#![expect(unsafe_code, reason = "lends a caller's closure and disjoint slices to other threads")]

use std::any::Any;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};

use crate::buffer::{Buffer, Element};
use crate::compute::ComputeError;

/// Spins of an idle worker before it parks: some tens of microseconds, longer than the scalar code between two
/// kernels and far shorter than a time slice.
const SPINS_BEFORE_PARK: u32 = 4_000;

const MAX_THREADS: usize = 1024;

type Task<'a> = dyn Fn(usize, &mut Scratch) + Sync + 'a;

/// Working memory of one thread, kept between tasks so that the token loop allocates nothing.
#[derive(Debug, Default)]
pub struct Scratch {
    floats: Vec<Buffer<f32>>,
    /// What a matrix product inside a task needs, apart from the task's own slices.
    pub(crate) tiles: TileScratch,
}

/// Working memory of matrix products: left operands that are transposed or packed, blocks that are unpacked, and sums that wait.
#[derive(Debug, Default)]
pub(crate) struct TileScratch {
    floats: Vec<Buffer<f32>>,
    /// Whose rows lie packed in the first of them.
    packed: Option<PackedRows>,
}

/// Rows of the left operand of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PackedRows {
    /// The product, by [`Pool::job_number`].
    pub(crate) job: u64,
    /// The first row.
    pub(crate) row: usize,
    /// How many there are.
    pub(crate) n_rows: usize,
}

impl TileScratch {
    /// As [`Scratch::floats`].
    pub(crate) fn floats<const N: usize>(&mut self, lens: [usize; N]) -> [&mut [f32]; N] {
        self.floats_after(None, lens).0
    }

    /// The same, and whether the first slice still has these packed rows, which it will have in any case.
    pub(crate) fn floats_after<const N: usize>(
        &mut self,
        packed: Option<PackedRows>,
        lens: [usize; N],
    ) -> ([&mut [f32]; N], bool) {
        let is_packed = packed.is_some() && self.packed == packed;
        self.packed = packed;
        (grow(&mut self.floats, lens), is_packed)
    }
}

impl Scratch {
    /// `N` f32 slices of the lengths given, holding whatever the last task left. They grow when a longer one is
    /// asked for and never shrink.
    pub fn floats<const N: usize>(&mut self, lens: [usize; N]) -> [&mut [f32]; N] {
        grow(&mut self.floats, lens)
    }

    /// As [`Scratch::floats`], beside the memory of matrix products, but each of the `n` slices says its length where it is taken.
    pub(crate) fn slices(&mut self, n: usize) -> (Slices<'_>, &mut TileScratch) {
        (Slices { buffers: first_buffers(&mut self.floats, n) }, &mut self.tiles)
    }
}

/// Slices of scratch that are taken one by one.
pub(crate) struct Slices<'a> {
    buffers: &'a mut [Buffer<f32>],
}

impl<'a> Slices<'a> {
    /// The next slice, of `len` numbers.
    pub(crate) fn take<T: Element>(&mut self, len: usize) -> &'a mut [T] {
        let (buffer, rest) = std::mem::take(&mut self.buffers)
            .split_first_mut()
            .expect("no more slices are taken than were asked for");
        self.buffers = rest;
        &mut reinterpret(grow_to(buffer, len))[..len]
    }
}

fn first_buffers(buffers: &mut Vec<Buffer<f32>>, n: usize) -> &mut [Buffer<f32>] {
    while buffers.len() < n {
        buffers.push(Buffer::zeroed(0));
    }
    &mut buffers[..n]
}

fn grow_to(buffer: &mut Buffer<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        *buffer = Buffer::zeroed(len.next_power_of_two());
    }
    &mut buffer[..len]
}

fn grow<const N: usize>(buffers: &mut Vec<Buffer<f32>>, lens: [usize; N]) -> [&mut [f32]; N] {
    let buffers = first_buffers(buffers, N).iter_mut();
    let mut slices = buffers.zip(lens).map(|(buffer, len)| grow_to(buffer, len));
    std::array::from_fn(|_| slices.next().expect("there is one buffer per length"))
}

/// Views `values` as another element type of at most the same size.
pub(crate) fn reinterpret<T: Element>(values: &mut [f32]) -> &mut [T] {
    assert!(size_of::<T>() <= size_of::<f32>() && align_of::<T>() <= align_of::<f32>());
    let len = values.len() * (size_of::<f32>() / size_of::<T>());
    // SAFETY: Element types accept every bit pattern, the length covers no more bytes than before, and the
    // alignment was checked.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), len) }
}

#[derive(Debug)]
struct Shared {
    /// Number of the job, counted up by the caller when one is published.
    epoch: AtomicU64,
    /// The number of the job that may be joined; 0 when none.
    open_epoch: AtomicU64,
    /// Workers inside the open job.
    n_active: AtomicUsize,
    /// For each thread, the next task of its share.
    next_tasks: Vec<NextTask>,
    job: UnsafeCell<Option<Job>>,
    /// What the first worker that panicked in the open job said.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
}

impl Shared {
    fn panic(&self) -> MutexGuard<'_, Option<Box<dyn Any + Send>>> {
        self.panic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// First task of a thread's share; that of one thread more is the number of tasks.
    fn share_start(&self, thread_idx: usize, n_tasks: usize) -> usize {
        // Without a product of the two, which could overflow.
        let n_threads = self.next_tasks.len();
        let (whole, left) = (n_tasks / n_threads, n_tasks % n_threads);
        thread_idx * whole + thread_idx.min(left)
    }

    /// The tasks of a thread's share, then what is left of the others'.
    fn claim_tasks(
        &self,
        thread_idx: usize,
        n_tasks: usize,
        task: &Task<'_>,
        scratch: &mut Scratch,
    ) {
        let n_threads = self.next_tasks.len();
        for owner_idx in (thread_idx..n_threads).chain(0..thread_idx) {
            let end = self.share_start(owner_idx + 1, n_tasks);
            let next = &self.next_tasks[owner_idx].0;
            // To look first costs less than to count where nothing is left, which is so for most shares of many threads.
            while next.load(Ordering::Relaxed) < end {
                let task_idx = next.fetch_add(1, Ordering::Relaxed);
                if task_idx < end {
                    task(task_idx, scratch);
                }
            }
        }
    }

    /// Leaves no task to be claimed.
    fn drop_tasks(&self) {
        for next in &self.next_tasks {
            next.0.store(usize::MAX / 2, Ordering::Relaxed);
        }
    }
}

// SAFETY: `job` is written only while no job is open and no worker is active, and read only by workers that
// raised `n_active` and then saw the job open (see `Pool::run`).
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is used only while the caller that owns the closure waits in `run`.
unsafe impl Send for Shared {}

/// On cache lines of its own: threads count in different shares most of the time.
#[derive(Debug)]
#[repr(align(128))]
struct NextTask(AtomicUsize);

#[derive(Clone, Copy, Debug)]
struct Job {
    task: *const Task<'static>,
    n_tasks: usize,
}

/// A pool of threads that run one job at a time together with the calling thread.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    /// Scratch of the calling thread; its lock also serialises callers.
    caller: Mutex<Scratch>,
    n_jobs: AtomicU64,
}

#[derive(Debug)]
struct Worker {
    parked: Arc<AtomicBool>,
    thread: Thread,
    handle: Option<JoinHandle<()>>,
}

impl Pool {
    /// A pool of `n_threads` threads, the caller of [`Pool::run`] being one of them.
    ///
    /// # Errors
    /// When `n_threads` is 0 or over 1024, or the system refuses a thread.
    pub fn new(n_threads: usize) -> Result<Self, ComputeError> {
        if n_threads == 0 || n_threads > MAX_THREADS {
            return Err(ComputeError::ThreadCount { n_threads });
        }
        let shared = Arc::new(Shared {
            epoch: AtomicU64::new(0),
            open_epoch: AtomicU64::new(0),
            n_active: AtomicUsize::new(0),
            next_tasks: (0..n_threads).map(|_| NextTask(AtomicUsize::new(0))).collect(),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let (caller, n_jobs) = (Mutex::default(), AtomicU64::new(0));
        let mut pool = Self { shared, workers: Vec::new(), caller, n_jobs };
        for worker_idx in 1..n_threads {
            let (shared, parked) = (Arc::clone(&pool.shared), Arc::new(AtomicBool::new(false)));
            let worker_parked = Arc::clone(&parked);
            let handle = thread::Builder::new()
                .name(format!("compute-{worker_idx}"))
                .spawn(move || work(&shared, worker_idx, &worker_parked))
                .map_err(|source| ComputeError::Spawn { source })?;
            let thread = handle.thread().clone();
            pool.workers.push(Worker { parked, thread, handle: Some(handle) });
        }
        Ok(pool)
    }

    /// Number of threads, the calling one included.
    #[must_use]
    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// A number that no other call gives: what tasks of one job leave in their scratch for one another is marked with it.
    pub(crate) fn job_number(&self) -> u64 {
        self.n_jobs.fetch_add(1, Ordering::Relaxed)
    }

    /// Calls `task(task_idx, scratch)` once for every index below `n_tasks`, in any order, on all threads.
    /// Returns when all calls have ended. Must not be called from within a task.
    ///
    /// # Panics
    /// With the panic of a task.
    pub fn run(&self, n_tasks: usize, task: impl Fn(usize, &mut Scratch) + Sync) {
        let mut scratch = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
        if n_tasks <= 1 || self.workers.is_empty() {
            (0..n_tasks).for_each(|task_idx| task(task_idx, &mut scratch));
            return;
        }
        let task: &Task<'_> = &task;
        // SAFETY: only the lifetime changes. The pointer is dropped from `job` before this function returns
        // or unwinds, and no worker uses it after `n_active` fell to zero with the job closed.
        let task_pointer = unsafe {
            std::mem::transmute::<*const Task<'_>, *const Task<'static>>(std::ptr::from_ref(task))
        };
        self.publish(Job { task: task_pointer, n_tasks });
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            self.shared.claim_tasks(0, n_tasks, task, &mut scratch);
        }));
        if outcome.is_err() {
            // This thread leaves tasks unclaimed: nobody shall begin them.
            self.shared.drop_tasks();
        }
        self.close();
        let workers_panic = self.shared.panic().take();
        if let Some(panic) = outcome.err().or(workers_panic) {
            resume_unwind(panic);
        }
    }

    fn publish(&self, job: Job) {
        let shared = &self.shared;
        // SAFETY: the caller's lock is held, no job is open and no worker is active: nobody reads `job` now.
        unsafe { *shared.job.get() = Some(job) };
        for (thread_idx, next) in shared.next_tasks.iter().enumerate() {
            next.0.store(shared.share_start(thread_idx, job.n_tasks), Ordering::Relaxed);
        }
        let epoch = shared.epoch.load(Ordering::Relaxed) + 1;
        shared.open_epoch.store(epoch, Ordering::SeqCst);
        shared.epoch.store(epoch, Ordering::SeqCst);
        for worker in &self.workers {
            if worker.parked.swap(false, Ordering::SeqCst) {
                worker.thread.unpark();
            }
        }
    }

    /// Ends the job: nobody may join any more, and those inside are waited for.
    fn close(&self) {
        let shared = &self.shared;
        shared.open_epoch.store(0, Ordering::SeqCst);
        let mut spins = 0_u32;
        while shared.n_active.load(Ordering::SeqCst) > 0 {
            spins = spins.wrapping_add(1);
            if spins.is_multiple_of(SPINS_BEFORE_PARK) {
                thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }

    /// Splits `out` into consecutive chunks of `chunk_len` (the last may be shorter) and calls
    /// `task(chunk_idx, chunk, scratch)` for each.
    ///
    /// # Panics
    /// When `chunk_len` is 0 or a task panicked.
    pub fn run_chunks<T: Send>(
        &self,
        out: &mut [T],
        chunk_len: usize,
        task: impl Fn(usize, &mut [T], &mut Scratch) + Sync,
    ) {
        assert!(chunk_len > 0, "chunk_len is 0");
        let len = out.len();
        let parts = SliceParts::new(out);
        self.run(len.div_ceil(chunk_len), |chunk_idx, scratch| {
            let start = chunk_idx * chunk_len;
            // SAFETY: chunks of different indices do not overlap, and each index is run once.
            let chunk = unsafe { parts.range(start, chunk_len.min(len - start)) };
            task(chunk_idx, chunk, scratch);
        });
    }
}

/// A matrix whose rows are written by tasks.
#[derive(Debug)]
pub struct RowsOut<'a, T> {
    /// `[n_rows, width]`.
    pub values: &'a mut [T],
    /// Values in a row; 0 for an output that is not wanted.
    pub width: usize,
}

impl<'a, T> RowsOut<'a, T> {
    /// An output of rows of `width`.
    pub fn new(values: &'a mut [T], width: usize) -> Self {
        Self { values, width }
    }

    /// No output: tasks get an empty slice.
    #[must_use]
    pub fn none() -> Self {
        Self { values: &mut [], width: 0 }
    }
}

impl Pool {
    /// Calls `task(first_row, n_rows, a, b, c)` for consecutive bundles of rows of three outputs.
    ///
    /// # Panics
    /// When an output has not `n_rows` rows, or a task panicked.
    pub fn run_rows<A: Send, B: Send, C: Send>(
        &self,
        n_rows: usize,
        rows_per_task: usize,
        outputs: (RowsOut<'_, A>, RowsOut<'_, B>, RowsOut<'_, C>),
        task: impl Fn(usize, usize, (&mut [A], &mut [B], &mut [C])) + Sync,
    ) {
        let (a, b, c) = outputs;
        assert_eq!(a.values.len(), n_rows * a.width);
        assert_eq!(b.values.len(), n_rows * b.width);
        assert_eq!(c.values.len(), n_rows * c.width);
        let widths = (a.width, b.width, c.width);
        let (a, b, c) =
            (SliceParts::new(a.values), SliceParts::new(b.values), SliceParts::new(c.values));
        self.run(n_rows.div_ceil(rows_per_task), |task_idx, _| {
            let row = task_idx * rows_per_task;
            let n = rows_per_task.min(n_rows - row);
            // SAFETY: bundles of different tasks do not overlap, and each index is run once.
            let parts = unsafe {
                (
                    a.range(row * widths.0, n * widths.0),
                    b.range(row * widths.1, n * widths.1),
                    c.range(row * widths.2, n * widths.2),
                )
            };
            task(row, n, parts);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in &mut self.workers {
            worker.thread.unpark();
            if let Some(handle) = worker.handle.take() {
                // A worker's panic was reported by `run`; there is nobody to tell here.
                let _ = handle.join();
            }
        }
    }
}

fn work(shared: &Shared, worker_idx: usize, parked: &AtomicBool) {
    let mut scratch = Scratch::default();
    let mut seen_epoch = 0;
    while let Some(epoch) = wait_for_job(shared, parked, seen_epoch) {
        seen_epoch = epoch;
        // Raise the count first, look second: `close` stores first and reads the count second, so one of the
        // two sees the other (both orders are sequentially consistent).
        shared.n_active.fetch_add(1, Ordering::SeqCst);
        if shared.open_epoch.load(Ordering::SeqCst) == epoch {
            // SAFETY: the job is open and this worker is counted, so the caller waits in `close` before it
            // takes the closure away.
            let outcome = catch_unwind(AssertUnwindSafe(|| unsafe {
                let job = (*shared.job.get()).expect("an open job is published");
                shared.claim_tasks(worker_idx, job.n_tasks, &*job.task, &mut scratch);
            }));
            if let Err(panic) = outcome {
                shared.panic().get_or_insert(panic);
                shared.drop_tasks();
            }
        }
        shared.n_active.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The number of the next job, or `None` when the pool ends.
fn wait_for_job(shared: &Shared, parked: &AtomicBool, seen_epoch: u64) -> Option<u64> {
    let mut spins = 0;
    loop {
        if shared.stop.load(Ordering::SeqCst) {
            return None;
        }
        let epoch = shared.epoch.load(Ordering::SeqCst);
        if epoch != seen_epoch {
            return Some(epoch);
        }
        spins += 1;
        if spins < SPINS_BEFORE_PARK {
            std::hint::spin_loop();
            continue;
        }
        parked.store(true, Ordering::SeqCst);
        // A job published between the check above and the store would not unpark us: look again.
        if shared.epoch.load(Ordering::SeqCst) == seen_epoch && !shared.stop.load(Ordering::SeqCst)
        {
            thread::park();
        }
        parked.store(false, Ordering::SeqCst);
        spins = 0;
    }
}

/// A mutable slice that several tasks write in disjoint parts.
#[derive(Clone, Copy, Debug)]
pub struct SliceParts<'a, T> {
    start: *mut T,
    len: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out parts only through an unsafe function whose contract forbids overlap.
unsafe impl<T: Send> Send for SliceParts<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SliceParts<'_, T> {}

impl<'a, T> SliceParts<'a, T> {
    /// Borrows `slice` for as long as parts are handed out.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), owner: PhantomData }
    }

    /// The elements `start .. start + len`.
    ///
    /// # Panics
    /// When the range leaves the slice.
    ///
    /// # Safety
    /// No two parts that are alive at the same time overlap.
    #[must_use]
    pub unsafe fn range(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start, "{start} + {len} > {}", self.len);
        // SAFETY: in bounds by the assertion; unique by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// Pointer to element `start`, for kernels that write a strided tile.
    pub(crate) fn pointer(&self, start: usize) -> *mut T {
        assert!(start <= self.len);
        self.start.wrapping_add(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whatever_the_thread_count() {
        for n_threads in [1, 2, 3, 8] {
            let pool = Pool::new(n_threads).unwrap();
            for n_tasks in [0, 1, 2, 7, 1000] {
                let counts: Vec<AtomicUsize> = (0..n_tasks).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..20 {
                    pool.run(n_tasks, |task_idx, _| {
                        counts[task_idx].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 20));
            }
        }
    }

    #[test]
    fn a_pool_works_after_its_threads_have_parked() {
        let pool = Pool::new(3).unwrap();
        for _ in 0..5 {
            std::thread::sleep(std::time::Duration::from_millis(5));
            let sum = AtomicUsize::new(0);
            pool.run(100, |task_idx, _| {
                sum.fetch_add(task_idx, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 4950);
        }
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(4).unwrap();
        // In the last case the caller and a worker panic in one job.
        for bad_idx in [0, 50, 99, usize::MAX] {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(100, |task_idx, _| {
                    std::thread::sleep(std::time::Duration::from_micros(50));
                    assert!(task_idx != bad_idx && bad_idx != usize::MAX, "not {bad_idx}");
                });
            }));
            let panic = outcome.unwrap_err();
            assert_eq!(panic.downcast_ref::<String>().unwrap(), &format!("not {bad_idx}"));
        }
        let sum = AtomicUsize::new(0);
        pool.run(10, |_, _| {
            sum.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 10);
    }

    #[test]
    fn chunks_cover_the_slice_in_order() {
        let pool = Pool::new(2).unwrap();
        let mut out = vec![0; 103];
        pool.run_chunks(&mut out, 10, |chunk_idx, chunk, _| chunk.fill(chunk_idx));
        assert!(out.iter().enumerate().all(|(i, &chunk_idx)| chunk_idx == i / 10));
    }

    #[test]
    fn scratch_grows_and_keeps_lengths() {
        let mut scratch = Scratch::default();
        let [a, b] = scratch.floats([10, 3000]);
        assert_eq!((a.len(), b.len()), (10, 3000));
        let [a] = scratch.floats([100]);
        assert_eq!(a.len(), 100);
    }
}
