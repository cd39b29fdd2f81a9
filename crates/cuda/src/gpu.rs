//! An open GPU: its context, its one stream, and the kernels.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::blas::Blas;
use crate::chain::{self, Chain, Launch, Link, Links};
use crate::compiled;
use crate::driver::{self, Driver, LaunchAttribute, LaunchConfiguration};
use crate::error::CudaError;
use crate::library::LibraryPath;
use crate::memory::{Memory, Plain};
use crate::staging::Staging;

/// File name of the driver's library.
pub const DRIVER: &str = "libcuda.so.1";

/// Shared memory that a block gets without asking, and which is available to every kernel.
const SHARED_WITHOUT_ASKING: usize = 48 << 10;

/// Shared memory of a block that kernels may ask for on every GPU. Those of compute capability 8.6, 8.9 and 12 have 99 KiB, too little
/// for attention with heads of 128.
const LEAST_SHARED: usize = 160 << 10;

/// An NVIDIA GPU. Everything that it is asked to do happens in the order of the calls; a call returns before the work is done,
/// unless it reads a result. A clone is the same GPU.
///
/// Operations panic when the driver refuses a launch or reports that an earlier one failed: nothing can be computed after that.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    driver: Driver,
    context: driver::Context,
    stream: driver::Stream,
    description: GpuDescription,
    modules: Vec<driver::Module>,
    /// Kernels that were launched before, by name.
    functions: Mutex<HashMap<String, KernelFunction>>,
    blas: Blas,
    /// Bytes of memory that was not given back yet, and the most that they have been.
    used_bytes: AtomicUsize,
    most_used_bytes: AtomicUsize,
    /// Blocks of a chain: as many as run at the same time, for certain.
    chain_blocks: usize,
    /// Operations that were asked for and wait for the next.
    chain: Mutex<Chain>,
    /// How often the stream was waited for.
    n_waits: AtomicUsize,
    /// What was asked for while a profile is made, with events before and after.
    profile: Mutex<Option<Vec<(String, driver::Event, driver::Event)>>>,
    staging: Mutex<Staging>,
}

impl Drop for Inner {
    #[expect(unsafe_code, reason = "calls of the driver")]
    fn drop(&mut self) {
        let staging = self.staging.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: context and stream are open and stay so. A failure here follows one that an earlier call reported.
        unsafe {
            let _status = (self.driver.set_context)(self.context);
            let _status = (self.driver.synchronize_stream)(self.stream);
        }
        CURRENT.set(self.context.addr());
        staging.free(&self.driver);
    }
}

/// What a GPU spent its time on.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelTime {
    /// The kernel, or the product with its dimensions.
    pub name: String,
    /// How often.
    pub n_calls: usize,
    /// Seconds in all.
    pub seconds: f64,
}

// SAFETY: the handles are the driver's, which may be used from every thread once the context is current in it
// (`Gpu::driver` sees to that); the table of functions and pinned memory are behind locks, `Blas` has its own.
#[expect(unsafe_code, reason = "handles of the driver are pointers")]
unsafe impl Send for Inner {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "handles of the driver are pointers")]
unsafe impl Sync for Inner {}

/// What a GPU is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuDescription {
    /// As the driver calls it.
    pub name: String,
    /// Compute capability, as in 9.0.
    pub capability: (i32, i32),
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// Its memory.
    pub memory_bytes: usize,
    /// Version of CUDA that the driver supports, as in 13.0.
    pub driver_version: (i32, i32),
    /// Version of cuBLASLt, as it counts: 130100 is 13.1.
    pub blas_version: usize,
}

#[derive(Clone, Copy)]
struct KernelFunction {
    function: driver::Function,
    /// Dynamic shared memory that was asked for.
    shared_bytes: usize,
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// Blocks in x, y and z.
    pub(crate) blocks: [usize; 3],
    /// Threads of a block.
    pub(crate) threads: usize,
    /// Dynamic shared memory of a block.
    pub(crate) shared_bytes: usize,
}

/// An argument of a kernel.
#[derive(Clone, Debug)]
pub(crate) enum Argument {
    /// An address on the device, or 0.
    Pointer(u64),
    I32(i32),
    I64(i64),
    U32(u32),
    U64(u64),
    F32(f32),
    Links(Box<Links>),
}

/// A count as an `int` of a kernel.
pub(crate) fn int(n: usize) -> i32 {
    i32::try_from(n).expect("a count of less than 2^31")
}

impl Argument {
    /// A count as an `int`.
    pub(crate) fn count(n: usize) -> Self {
        Self::I32(int(n))
    }

    /// A count as an `int64_t`.
    pub(crate) fn long(n: usize) -> Self {
        Self::I64(i64::try_from(n).expect("a count of less than 2^63"))
    }

    fn address(&self) -> *mut c_void {
        let address: *const c_void = match self {
            Self::Pointer(x) | Self::U64(x) => std::ptr::from_ref(x).cast(),
            Self::I32(x) => std::ptr::from_ref(x).cast(),
            Self::U32(x) => std::ptr::from_ref(x).cast(),
            Self::I64(x) => std::ptr::from_ref(x).cast(),
            Self::F32(x) => std::ptr::from_ref(x).cast(),
            Self::Links(x) => std::ptr::from_ref(&**x).cast(),
        };
        address.cast_mut()
    }
}

thread_local! {
    /// The context that is current in this thread, as a number.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

#[expect(unsafe_code, reason = "calls of the driver")]
impl Gpu {
    /// Opens the first GPU.
    ///
    /// # Errors
    /// When there is no driver, no GPU, no cuBLASLt, or the GPU is too old.
    pub fn open(path: &LibraryPath) -> Result<Self, CudaError> {
        let driver = Driver::of(&path.open_driver(DRIVER)?)?;
        let mut device = 0;
        let mut n_devices = 0;
        // SAFETY: pointers to local variables of the types that the driver's header names.
        unsafe {
            let status = (driver.init)(0);
            if status == driver::NO_DEVICE {
                return Err(CudaError::NoDevice);
            }
            driver.check("cuInit", status)?;
            driver.check("cuDeviceGetCount", (driver.device_count)(&raw mut n_devices))?;
            if n_devices == 0 {
                return Err(CudaError::NoDevice);
            }
            driver.check("cuDeviceGet", (driver.device)(&raw mut device, 0))?;
        }
        let mut description = describe(&driver, device)?;
        check_capability(&driver, device, &description)?;
        let mut blocks_can_wait = 0;
        // SAFETY: a pointer to a local variable.
        let status = unsafe {
            (driver.device_attribute)(&raw mut blocks_can_wait, driver::BLOCKS_CAN_WAIT, device)
        };
        driver.check("cuDeviceGetAttribute", status)?;
        let chain_blocks = if blocks_can_wait == 0 { 1 } else { description.multiprocessors };
        let (mut context, mut stream) = (std::ptr::null_mut(), std::ptr::null_mut());
        let mut pool = std::ptr::null_mut();
        let mut threshold = u64::MAX;
        // SAFETY: as above; the threshold is a u64, as this attribute asks.
        unsafe {
            let retained = (driver.retain_context)(&raw mut context, device);
            driver.check("cuDevicePrimaryCtxRetain", retained)?;
            driver.check("cuCtxSetCurrent", (driver.set_context)(context))?;
            let created = (driver.create_stream)(&raw mut stream, driver::STREAM_NON_BLOCKING);
            driver.check("cuStreamCreate", created)?;
            driver
                .check("cuDeviceGetDefaultMemPool", (driver.default_pool)(&raw mut pool, device))?;
            // Memory that is freed is kept for the next that asks.
            let set = (driver.set_pool_attribute)(
                pool,
                driver::RELEASE_THRESHOLD,
                (&raw mut threshold).cast(),
            );
            driver.check("cuMemPoolSetAttribute", set)?;
        }
        CURRENT.set(context.addr());
        let counter = new_counter(&driver, stream)?;
        let modules = load_modules(&driver, description.capability)?;
        let blas = Blas::open(path)?;
        description.blas_version = blas.version();
        let functions = Mutex::new(HashMap::new());
        let profile = Mutex::new(None);
        let [used_bytes, most_used_bytes] = [AtomicUsize::new(0), AtomicUsize::new(0)];
        Ok(Self(Arc::new(Inner {
            driver,
            context,
            stream,
            description,
            modules,
            functions,
            blas,
            chain_blocks,
            chain: Mutex::new(Chain { counter, ..Chain::default() }),
            used_bytes,
            most_used_bytes,
            n_waits: AtomicUsize::new(0),
            profile,
            staging: Mutex::default(),
        })))
    }

    /// What it is.
    #[must_use]
    pub fn description(&self) -> &GpuDescription {
        &self.0.description
    }

    /// Multiprocessors.
    pub(crate) fn multiprocessors(&self) -> usize {
        self.0.description.multiprocessors
    }

    /// Memory that this program can still take, in bytes, not always in one piece: what no program has, and what this one gave back,
    /// which the driver keeps for it.
    #[must_use]
    pub fn free_bytes(&self) -> usize {
        let (mut free, mut total) = (0, 0);
        // SAFETY: pointers to local variables.
        let status = unsafe { (self.driver().free_memory)(&raw mut free, &raw mut total) };
        self.expect("cuMemGetInfo", status);
        let used = self.used_bytes();
        (free + self.most_used_bytes().saturating_sub(used)).min(total.saturating_sub(used))
    }

    /// Bytes of its memory that this program has asked for and not given back.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.0.used_bytes.load(Ordering::Relaxed)
    }

    /// The most that [`Gpu::used_bytes`] has been.
    #[must_use]
    pub fn most_used_bytes(&self) -> usize {
        self.0.most_used_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn count_taken(&self, n_bytes: usize) {
        let used = self.0.used_bytes.fetch_add(n_bytes, Ordering::Relaxed) + n_bytes;
        self.0.most_used_bytes.fetch_max(used, Ordering::Relaxed);
    }

    pub(crate) fn count_given_back(&self, n_bytes: usize) {
        self.0.used_bytes.fetch_sub(n_bytes, Ordering::Relaxed);
    }

    /// How often this program has waited until the GPU had done everything that was asked of it: for each result that was read.
    #[must_use]
    pub fn n_waits(&self) -> usize {
        self.0.n_waits.load(Ordering::Relaxed)
    }

    /// Waits until everything that was asked for is done.
    pub(crate) fn synchronize(&self) {
        self.0.n_waits.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the stream is open.
        let status = unsafe { (self.driver().synchronize_stream)(self.stream()) };
        self.expect("cuStreamSynchronize", status);
    }

    /// Memory of `n_bytes` bytes without values.
    pub(crate) fn memory(&self, n_bytes: usize) -> Memory {
        Memory::new(self, n_bytes)
    }

    /// Memory with a copy of `values`.
    pub(crate) fn upload<T: Plain>(&self, values: &[T]) -> Memory {
        let memory = self.memory(size_of_val(values));
        memory.write(values);
        memory
    }

    /// Pinned memory of this machine, `n_bytes` of it and at least one, without values.
    pub(crate) fn pinned_bytes(&self, n_bytes: usize) -> NonNull<u8> {
        let mut address = std::ptr::null_mut::<c_void>();
        // SAFETY: a pointer to a local variable.
        let status = unsafe { (self.driver().allocate_on_host)(&raw mut address, n_bytes) };
        self.expect("cuMemAllocHost", status);
        NonNull::new(address.cast()).expect("memory that the driver gave")
    }

    /// Does something with the pinned memory of copies, which no other thread has then.
    pub(crate) fn staged(&self, work: impl FnOnce(&mut Staging)) {
        work(&mut lock(&self.0.staging));
    }

    /// Seconds between two calls as the GPU sees them.
    pub fn timed(&self, work: impl FnOnce()) -> f64 {
        self.launch_waiting();
        let (start, end) = (self.event(), self.event());
        work();
        // SAFETY: the event is open and the stream too.
        let status = unsafe { (self.driver().record_event)(end, self.stream()) };
        self.expect("cuEventRecord", status);
        self.seconds_between(start, end)
    }

    /// What the GPU spent its time on while `work` was done, the longest first. Each launch is timed by itself, which adds some
    /// microseconds to each.
    pub fn profiled(&self, work: impl FnOnce()) -> Vec<KernelTime> {
        self.launch_waiting();
        *lock(&self.0.profile) = Some(Vec::new());
        work();
        self.launch_waiting();
        let recorded = lock(&self.0.profile).take().unwrap_or_default();
        let mut times: HashMap<String, (usize, f64)> = HashMap::new();
        for (name, start, end) in recorded {
            let seconds = self.seconds_between(start, end);
            let time = times.entry(name).or_default();
            *time = (time.0 + 1, time.1 + seconds);
        }
        let mut times: Vec<KernelTime> = times
            .into_iter()
            .map(|(name, (n_calls, seconds))| KernelTime { name, n_calls, seconds })
            .collect();
        times.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        times
    }

    /// Does something that is named in a profile, if one is made, after what waits.
    pub(crate) fn noted(&self, name: impl FnOnce() -> String, work: impl FnOnce()) {
        self.launch_waiting();
        self.noted_alone(name, work);
    }

    fn noted_alone(&self, name: impl FnOnce() -> String, work: impl FnOnce()) {
        if lock(&self.0.profile).is_none() {
            return work();
        }
        let start = self.event();
        work();
        let end = self.event();
        if let Some(profile) = &mut *lock(&self.0.profile) {
            profile.push((name(), start, end));
        }
    }

    /// Waits for the second of two events, and destroys both.
    fn seconds_between(&self, start: driver::Event, end: driver::Event) -> f64 {
        let driver = self.driver();
        let mut ms = 0.0;
        // SAFETY: both events are open until they are destroyed here, and were recorded on the open stream.
        unsafe {
            self.expect("cuEventSynchronize", (driver.synchronize_event)(end));
            self.expect("cuEventElapsedTime", (driver.elapsed_ms)(&raw mut ms, start, end));
            self.expect("cuEventDestroy", (driver.destroy_event)(start));
            self.expect("cuEventDestroy", (driver.destroy_event)(end));
        }
        f64::from(ms) / 1e3
    }

    /// Waits for an event, and destroys it.
    pub(crate) fn wait_for(&self, event: driver::Event) {
        let driver = self.driver();
        // SAFETY: the event is open until it is destroyed here.
        unsafe {
            self.expect("cuEventSynchronize", (driver.synchronize_event)(event));
            self.expect("cuEventDestroy", (driver.destroy_event)(event));
        }
    }

    /// An event, recorded.
    pub(crate) fn event(&self) -> driver::Event {
        let driver = self.driver();
        let mut event = std::ptr::null_mut();
        // SAFETY: a pointer to a local variable, then the event that it was set to.
        unsafe {
            self.expect("cuEventCreate", (driver.create_event)(&raw mut event, 0));
            self.expect("cuEventRecord", (driver.record_event)(event, self.0.stream));
        }
        event
    }

    /// Launches a kernel. The arguments are those of its source, in order and type.
    ///
    /// # Panics
    /// When there is no such kernel or the driver refuses.
    pub(crate) fn launch(&self, kernel: &str, grid: Grid, arguments: &[Argument]) {
        let work = || self.launch_now(kernel, grid, arguments, &[]);
        self.noted(|| kernel.to_owned(), work);
    }

    /// As [`Gpu::launch`], for kernels that say themselves when they need what earlier ones wrote: the GPU begins them while
    /// the one before ends, where it can.
    pub(crate) fn launch_early(&self, kernel: &str, grid: Grid, arguments: &[Argument]) {
        self.launch_waiting();
        self.launch_early_alone(kernel, grid, arguments);
    }

    fn launch_early_alone(&self, kernel: &str, grid: Grid, arguments: &[Argument]) {
        // PTX is compiled for the oldest GPU, which cannot wait: kernels from it do not.
        let attributes: &[LaunchAttribute] = match self.has_machine_code() {
            true => &[LaunchAttribute::EARLY],
            false => &[],
        };
        let work = || self.launch_now(kernel, grid, arguments, attributes);
        self.noted_alone(|| kernel.to_owned(), work);
    }

    fn has_machine_code(&self) -> bool {
        self.0.description.capability == compiled::MACHINE_CODE
    }

    /// As [`Gpu::launch_early`], for an operation that can also be a link of a chain: it waits for those that come next.
    pub(crate) fn launch_linked(
        &self,
        kernel: String,
        grid: Grid,
        arguments: Vec<Argument>,
        link: Link,
    ) {
        if !self.has_chains() {
            return self.launch_early(&kernel, grid, &arguments);
        }
        self.push_link(link, Some(Launch { kernel, grid, arguments }));
    }

    /// As [`Gpu::launch_linked`], for an operation that has no kernel of its own.
    ///
    /// # Panics
    /// When there are no chains.
    pub(crate) fn launch_as_link(&self, link: Link) {
        assert!(self.has_chains(), "a link where there are no chains");
        self.push_link(link, None);
    }

    fn push_link(&self, link: Link, launch: Option<Launch>) {
        let mut chain = lock(&self.0.chain);
        if let Err(launch) = chain.push(link, launch) {
            self.launch_chain(&mut chain);
            chain.push(link, launch).expect("an empty chain has room");
        }
    }

    /// Whether operations can be links of a chain: that kernel needs copies which PTX for the oldest GPU has not.
    pub(crate) fn has_chains(&self) -> bool {
        self.has_machine_code()
    }

    /// Launches the operations that wait. Whatever is asked of the stream otherwise begins with this.
    fn launch_waiting(&self) {
        // The lock is held until they are launched: another thread must not overtake them.
        self.launch_chain(&mut lock(&self.0.chain));
    }

    fn launch_chain(&self, chain: &mut Chain) {
        // What cannot be launched is not kept: its memory is given back while the panic unwinds.
        let links = std::mem::take(&mut chain.links);
        match std::mem::take(&mut chain.launches).as_slice() {
            [] => {}
            [Some(Launch { kernel, grid, arguments })] => {
                self.launch_early_alone(kernel, *grid, arguments);
            }
            _ => {
                self.launch_links(Links::new(links.into_iter()), self.0.chain_blocks, chain);
            }
        }
    }

    /// Launches a chain of one link on some number of blocks.
    pub(crate) fn launch_link_alone(&self, link: Link, n_blocks: usize) {
        self.launch_waiting();
        let links = Links::new(std::iter::once(link));
        self.launch_links(links, n_blocks, &mut lock(&self.0.chain));
    }

    fn launch_links(&self, links: Links, n_blocks: usize, chain: &mut Chain) {
        let n_links = links.n_links();
        let arguments = [
            Argument::Links(Box::new(links)),
            Argument::Pointer(chain.counter),
            Argument::U32(chain.n_arrived),
        ];
        let grid = Grid {
            blocks: [n_blocks, 1, 1],
            threads: chain::THREADS,
            shared_bytes: chain::SHARED_BYTES,
        };
        self.launch_early_alone("chain", grid, &arguments);
        let n_arrivals = (n_links - 1) * n_blocks;
        chain.n_arrived = chain.n_arrived.wrapping_add(n_arrivals as u32);
    }

    fn launch_now(
        &self,
        kernel: &str,
        grid: Grid,
        arguments: &[Argument],
        attributes: &[LaunchAttribute],
    ) {
        let function = self.function(kernel, grid.shared_bytes);
        let mut pointers: Vec<*mut c_void> = arguments.iter().map(Argument::address).collect();
        let size = |n: usize| u32::try_from(n).expect("a launch of fewer than 2^32");
        let [x, y, z] = grid.blocks.map(size);
        let (threads, shared) = (size(grid.threads), size(grid.shared_bytes));
        let configuration = LaunchConfiguration {
            blocks: [x, y, z],
            threads: [threads, 1, 1],
            shared_bytes: shared,
            stream: self.0.stream,
            attributes: attributes.as_ptr(),
            n_attributes: attributes.len() as u32,
        };
        // SAFETY: the function is one of ours, and its launcher in `ops` gives the arguments of its source; they are read, as
        // configuration and attributes are, before the call returns. Addresses are of memory that is freed in the order of
        // the stream, thus after the kernel.
        let status = unsafe {
            (self.driver().launch)(
                &raw const configuration,
                function,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        if let Err(error) = self.0.driver.check("cuLaunchKernelEx", status) {
            panic!("kernel {kernel} of {grid:?}: {error}");
        }
    }

    /// A kernel, allowed the dynamic shared memory that it is to get.
    fn function(&self, kernel: &str, shared_bytes: usize) -> driver::Function {
        let mut functions = lock(&self.0.functions);
        let known = functions.get(kernel).copied();
        if let Some(known) = known
            && shared_bytes <= known.shared_bytes
        {
            return known.function;
        }
        let function = known.map_or_else(|| self.find(kernel), |known| known.function);
        let allowed = shared_bytes.max(SHARED_WITHOUT_ASKING);
        if shared_bytes > SHARED_WITHOUT_ASKING {
            let bytes = i32::try_from(shared_bytes).expect("shared memory of less than 2 GiB");
            // SAFETY: the function was found in an open module.
            let status = unsafe {
                (self.driver().set_function_attribute)(function, driver::MAX_DYNAMIC_SHARED, bytes)
            };
            self.expect("cuFuncSetAttribute", status);
        }
        let entry = KernelFunction { function, shared_bytes: allowed };
        functions.insert(kernel.to_owned(), entry);
        function
    }

    fn find(&self, kernel: &str) -> driver::Function {
        let name = CString::new(kernel).expect("names of kernels have no NUL");
        for &module in &self.0.modules {
            let mut function = std::ptr::null_mut();
            // SAFETY: an open module, a C string, a pointer to a local variable.
            let status = unsafe {
                (self.driver().module_function)(&raw mut function, module, name.as_ptr())
            };
            if status == 0 {
                return function;
            }
        }
        panic!("no kernel {kernel} in any module");
    }

    /// The driver, after the context was made current in this thread.
    pub(crate) fn driver(&self) -> &Driver {
        let inner = &*self.0;
        if CURRENT.get() != inner.context.addr() {
            // SAFETY: the context was retained and is never released.
            let status = unsafe { (inner.driver.set_context)(inner.context) };
            self.expect("cuCtxSetCurrent", status);
            CURRENT.set(inner.context.addr());
        }
        &inner.driver
    }

    /// As [`Gpu::stream`], for what is dropped, also while a panic unwinds: a failed launch is not told then, for it follows one
    /// that was, or that the next call tells.
    pub(crate) fn last_stream(&self) -> driver::Stream {
        let _told = catch_unwind(AssertUnwindSafe(|| self.launch_waiting()));
        self.0.stream
    }

    /// The stream, for the next that is asked of it.
    pub(crate) fn stream(&self) -> driver::Stream {
        self.launch_waiting();
        self.0.stream
    }

    pub(crate) fn blas(&self) -> &Blas {
        &self.0.blas
    }

    /// Panics when a call failed.
    pub(crate) fn expect(&self, call: &'static str, status: i32) {
        if let Err(error) = self.0.driver.check(call, status) {
            panic!("{error}");
        }
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Gpu({})", self.0.description.name)
    }
}

/// A lock whose holder panicked guards nothing that could be half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(unsafe_code, reason = "calls of the driver")]
fn describe(driver: &Driver, device: i32) -> Result<GpuDescription, CudaError> {
    let mut name = [0; 256];
    let (mut memory_bytes, mut version) = (0, 0);
    let attribute = |attribute| -> Result<i32, CudaError> {
        let mut value = 0;
        // SAFETY: a pointer to a local variable.
        let status = unsafe { (driver.device_attribute)(&raw mut value, attribute, device) };
        driver.check("cuDeviceGetAttribute", status)?;
        Ok(value)
    };
    // SAFETY: pointers to local variables, the name with its length; the driver ends it with a NUL.
    let name = unsafe {
        let got = (driver.device_name)(name.as_mut_ptr(), name.len() as i32, device);
        driver.check("cuDeviceGetName", got)?;
        let got = (driver.device_memory)(&raw mut memory_bytes, device);
        driver.check("cuDeviceTotalMem", got)?;
        driver.check("cuDriverGetVersion", (driver.driver_version)(&raw mut version))?;
        std::ffi::CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned()
    };
    Ok(GpuDescription {
        name,
        capability: (attribute(driver::CAPABILITY_MAJOR)?, attribute(driver::CAPABILITY_MINOR)?),
        multiprocessors: attribute(driver::MULTIPROCESSORS)? as usize,
        memory_bytes,
        driver_version: (version / 1000, version % 1000 / 10),
        blas_version: 0,
    })
}

/// The number by which the blocks of chains wait for one another, 0. It stays as long as the context.
#[expect(unsafe_code, reason = "calls of the driver")]
fn new_counter(driver: &Driver, stream: driver::Stream) -> Result<driver::Address, CudaError> {
    let (mut address, n_bytes) = (0, size_of::<u32>());
    // SAFETY: a pointer to a local variable, then the bytes that it was set to; an open stream.
    unsafe {
        let allocated = (driver.allocate)(&raw mut address, n_bytes, stream);
        driver.check("cuMemAllocAsync", allocated)?;
        let cleared = (driver.set_bytes)(address, 0, n_bytes, stream);
        driver.check("cuMemsetD8Async", cleared)?;
    }
    Ok(address)
}

/// Refuses a GPU that cannot run the kernels.
#[expect(unsafe_code, reason = "a call of the driver")]
fn check_capability(driver: &Driver, device: i32, about: &GpuDescription) -> Result<(), CudaError> {
    let (name, (major, minor)) = (about.name.clone(), about.capability);
    if major < 8 {
        return Err(CudaError::TooOld { name, major, minor });
    }
    let mut got = 0;
    // SAFETY: a pointer to a local variable.
    let status = unsafe { (driver.device_attribute)(&raw mut got, driver::MOST_SHARED, device) };
    driver.check("cuDeviceGetAttribute", status)?;
    let (got, expected) = (usize::try_from(got).unwrap_or(0), LEAST_SHARED);
    if got < expected {
        return Err(CudaError::SharedMemory { name, got, expected });
    }
    Ok(())
}

/// The kernels: machine code where they were compiled for this very GPU, else PTX, which the driver compiles.
#[expect(unsafe_code, reason = "calls of the driver")]
fn load_modules(driver: &Driver, capability: (i32, i32)) -> Result<Vec<driver::Module>, CudaError> {
    let load = |kernels: &compiled::Kernels| {
        let image = match capability {
            compiled::MACHINE_CODE => kernels.sm_90a.to_vec(),
            // The driver reads text up to a NUL.
            _ => [kernels.compute_80, &[0]].concat(),
        };
        let mut module = std::ptr::null_mut();
        // SAFETY: a whole cubin or a text with its NUL, which the driver copies; a pointer to a local variable.
        let status = unsafe { (driver.load_module)(&raw mut module, image.as_ptr().cast()) };
        driver.check("cuModuleLoadData", status)?;
        Ok(module)
    };
    compiled::ALL.iter().map(load).collect()
}
