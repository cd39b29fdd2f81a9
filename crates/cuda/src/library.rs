//! Libraries that are found and opened at run time, so that the program starts where there are none.

use std::ffi::{CStr, CString, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::CudaError;

/// Where NVIDIA's libraries are looked for: in the folder that the user named, where the system's loader looks, and where
/// Python keeps those that came with packages such as PyTorch.
#[derive(Clone, Debug, Default)]
pub struct LibraryPath {
    named: Option<PathBuf>,
}

impl LibraryPath {
    /// With a folder that is looked into first.
    #[must_use]
    pub fn new(named: Option<PathBuf>) -> Self {
        Self { named }
    }

    /// Opens the first of `names` that is somewhere.
    pub(crate) fn open(&self, names: &[&'static str]) -> Result<Library, CudaError> {
        let mut places = Vec::new();
        let mut reason = String::from("no such file");
        if let Some(named) = &self.named {
            for name in names {
                match Library::open(&named.join(name), name) {
                    Ok(library) => return Ok(library),
                    Err(said) => reason = said,
                }
            }
            places.push(named.display().to_string());
        }
        for name in names {
            match Library::open(Path::new(name), name) {
                Ok(library) => return Ok(library),
                Err(said) => reason = said,
            }
        }
        places.push("the loader's path".to_owned());
        for directory in python_directories() {
            for name in names {
                let path = directory.join(name);
                if !path.exists() {
                    continue;
                }
                match Library::open(&path, name) {
                    Ok(library) => return Ok(library),
                    Err(said) => reason = said,
                }
            }
        }
        places.push("the nvidia packages of python3".to_owned());
        Err(CudaError::NoLibrary { name: names[0], reason, places })
    }
}

/// `nvidia/*/lib` of python3's packages; none without Python.
fn python_directories() -> Vec<PathBuf> {
    let program = "import nvidia; print('\\n'.join(nvidia.__path__))";
    let Ok(output) = Command::new("python3").args(["-c", program]).output() else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let packages = text.lines().filter_map(|line| std::fs::read_dir(line).ok()).flatten();
    let mut directories: Vec<PathBuf> =
        packages.filter_map(|entry| Some(entry.ok()?.path().join("lib"))).collect();
    directories.retain(|directory| directory.is_dir());
    directories.sort();
    directories
}

/// An open library, which stays open: its functions are kept.
#[derive(Debug)]
pub(crate) struct Library {
    handle: *mut c_void,
    name: &'static str,
}

#[expect(unsafe_code, reason = "calls of the system's loader")]
impl Library {
    fn open(path: &Path, name: &'static str) -> Result<Self, String> {
        let path = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| "a path with a NUL".to_owned())?;
        // SAFETY: the path is a C string. The library's initialisers run; they are those of NVIDIA's driver, which every
        // program that uses a GPU runs.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // SAFETY: after a failure dlerror gives a C string that stays until the next call in this thread.
            let said = unsafe { libc::dlerror() };
            if said.is_null() {
                return Err("the loader said nothing".to_owned());
            }
            // SAFETY: not null, and a C string as above.
            return Err(unsafe { CStr::from_ptr(said) }.to_string_lossy().into_owned());
        }
        Ok(Self { handle, name })
    }

    /// Address of a function.
    pub(crate) fn symbol(&self, symbol: &'static str) -> Result<*mut c_void, CudaError> {
        let name = CString::new(symbol).expect("names of functions have no NUL");
        // SAFETY: the handle is open and the name a C string.
        let address = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        if address.is_null() {
            return Err(CudaError::NoFunction { library: self.name, symbol });
        }
        Ok(address)
    }
}

/// A structure of functions of a library, each with its name there. All give a status that is 0 where nothing failed.
macro_rules! functions {
    ($(#[$doc:meta])* $visibility:vis $table:ident { $($name:ident = $symbol:literal ($($argument:ty),*);)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        $visibility struct $table {
            $($visibility $name: unsafe extern "C" fn($($argument),*) -> i32,)*
        }

        #[expect(unsafe_code, reason = "a function's type is what its header says")]
        impl $table {
            /// The functions of an open library.
            $visibility fn of(library: &$crate::library::Library) -> Result<Self, $crate::CudaError> {
                Ok(Self {
                    $($name: {
                        let address = library.symbol($symbol)?;
                        // SAFETY: the address is that of the function of this name, whose parameters NVIDIA's headers
                        // give as above, and which stays as long as the program: libraries are never closed.
                        unsafe {
                            std::mem::transmute::<
                                *mut std::ffi::c_void,
                                unsafe extern "C" fn($($argument),*) -> i32,
                            >(address)
                        }
                    },)*
                })
            }
        }
    };
}
pub(crate) use functions;
