//! The functions of the driver (`libcuda.so.1`) that are used.

use std::ffi::{CStr, c_char, c_void};

use crate::error::CudaError;
use crate::library::functions;

pub(crate) type Context = *mut c_void;
pub(crate) type Stream = *mut c_void;
pub(crate) type Module = *mut c_void;
pub(crate) type Function = *mut c_void;
pub(crate) type Event = *mut c_void;
pub(crate) type MemoryPool = *mut c_void;
pub(crate) type Address = u64;

/// `CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT`.
pub(crate) const MULTIPROCESSORS: i32 = 16;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`.
pub(crate) const CAPABILITY_MAJOR: i32 = 75;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR`.
pub(crate) const CAPABILITY_MINOR: i32 = 76;
/// `CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH`.
pub(crate) const BLOCKS_CAN_WAIT: i32 = 95;
/// `CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN`.
pub(crate) const MOST_SHARED: i32 = 97;
/// `CUDA_ERROR_OUT_OF_MEMORY`.
pub(crate) const OUT_OF_MEMORY: i32 = 2;
/// `CUDA_ERROR_NO_DEVICE`.
pub(crate) const NO_DEVICE: i32 = 100;
/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
pub(crate) const MAX_DYNAMIC_SHARED: i32 = 8;
/// `CU_MEMPOOL_ATTR_RELEASE_THRESHOLD`.
pub(crate) const RELEASE_THRESHOLD: i32 = 4;
/// `CU_STREAM_NON_BLOCKING`.
pub(crate) const STREAM_NON_BLOCKING: u32 = 1;

/// `CUlaunchConfig`.
#[repr(C)]
pub(crate) struct LaunchConfiguration {
    pub(crate) blocks: [u32; 3],
    pub(crate) threads: [u32; 3],
    pub(crate) shared_bytes: u32,
    pub(crate) stream: Stream,
    pub(crate) attributes: *const LaunchAttribute,
    pub(crate) n_attributes: u32,
}

/// `CUlaunchAttribute`: what it is, 4 bytes of padding, and 64 bytes of value, which may be a pointer.
#[repr(C, align(8))]
pub(crate) struct LaunchAttribute {
    id: u32,
    padding: u32,
    value: [u32; 16],
}

impl LaunchAttribute {
    /// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`, allowed.
    pub(crate) const EARLY: Self =
        Self { id: 6, padding: 0, value: [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] };
}

functions! {
    /// Functions of the driver; names and parameters as in `cuda.h`.
    pub(crate) Driver {
        init = "cuInit" (u32);
        driver_version = "cuDriverGetVersion" (*mut i32);
        device_count = "cuDeviceGetCount" (*mut i32);
        device = "cuDeviceGet" (*mut i32, i32);
        device_name = "cuDeviceGetName" (*mut c_char, i32, i32);
        device_attribute = "cuDeviceGetAttribute" (*mut i32, i32, i32);
        device_memory = "cuDeviceTotalMem_v2" (*mut usize, i32);
        free_memory = "cuMemGetInfo_v2" (*mut usize, *mut usize);
        retain_context = "cuDevicePrimaryCtxRetain" (*mut Context, i32);
        set_context = "cuCtxSetCurrent" (Context);
        create_stream = "cuStreamCreate" (*mut Stream, u32);
        synchronize_stream = "cuStreamSynchronize" (Stream);
        default_pool = "cuDeviceGetDefaultMemPool" (*mut MemoryPool, i32);
        set_pool_attribute = "cuMemPoolSetAttribute" (MemoryPool, i32, *mut c_void);
        allocate = "cuMemAllocAsync" (*mut Address, usize, Stream);
        free = "cuMemFreeAsync" (Address, Stream);
        allocate_on_host = "cuMemAllocHost_v2" (*mut *mut c_void, usize);
        free_on_host = "cuMemFreeHost" (*mut c_void);
        copy_to_device = "cuMemcpyHtoDAsync_v2" (Address, *const c_void, usize, Stream);
        copy_to_host = "cuMemcpyDtoHAsync_v2" (*mut c_void, Address, usize, Stream);
        copy_on_device = "cuMemcpyDtoDAsync_v2" (Address, Address, usize, Stream);
        set_bytes = "cuMemsetD8Async" (Address, u8, usize, Stream);
        load_module = "cuModuleLoadData" (*mut Module, *const c_void);
        module_function = "cuModuleGetFunction" (*mut Function, Module, *const c_char);
        set_function_attribute = "cuFuncSetAttribute" (Function, i32, i32);
        launch = "cuLaunchKernelEx" (
            *const LaunchConfiguration, Function, *mut *mut c_void, *mut *mut c_void
        );
        create_event = "cuEventCreate" (*mut Event, u32);
        record_event = "cuEventRecord" (Event, Stream);
        synchronize_event = "cuEventSynchronize" (Event);
        elapsed_ms = "cuEventElapsedTime" (*mut f32, Event, Event);
        destroy_event = "cuEventDestroy_v2" (Event);
        error_name = "cuGetErrorName" (i32, *mut *const c_char);
    }
}

#[expect(unsafe_code, reason = "a call of the driver")]
impl Driver {
    /// An error for a status that is not 0.
    pub(crate) fn check(&self, call: &'static str, status: i32) -> Result<(), CudaError> {
        if status == 0 {
            return Ok(());
        }
        let mut name = std::ptr::null();
        // SAFETY: the pointer is written with null or a C string that lives as long as the program.
        let known = unsafe { (self.error_name)(status, &raw mut name) } == 0 && !name.is_null();
        let name = match known {
            // SAFETY: as above, and not null.
            true => unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned(),
            false => "unknown".to_owned(),
        };
        Err(CudaError::Driver { call, code: status, name })
    }
}
