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

    /// Whether a folder was named.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.named.is_some()
    }

    /// Opens the driver, which no package of Python holds.
    pub(crate) fn open_driver(&self, name: &'static str) -> Result<Library, CudaError> {
        let mut search = Search::new();
        if let Some(library) = self.of_system(&[name], &mut search)? {
            return Ok(library);
        }
        Err(search.failure(name))
    }

    /// Opens the first of `names` that is somewhere.
    pub(crate) fn open(&self, names: &[&'static str]) -> Result<Library, CudaError> {
        let mut search = Search::new();
        if let Some(library) = self.of_system(names, &mut search)? {
            return Ok(library);
        }
        for directory in python_directories() {
            for name in names {
                let path = directory.join(name);
                if path.exists()
                    && let Some(library) = search.opened(&path, name)
                {
                    return Ok(library);
                }
            }
        }
        search.places.push("the nvidia packages of python3".to_owned());
        Err(search.failure(names[0]))
    }

    /// In the named folder, whose libraries are opened or refused, then where the loader looks.
    fn of_system(
        &self,
        names: &[&'static str],
        search: &mut Search,
    ) -> Result<Option<Library>, CudaError> {
        if let Some(named) = &self.named {
            for name in names {
                let path = named.join(name);
                if path.exists() {
                    // Without a slash it would be a name for the loader.
                    let path = std::path::absolute(&path).unwrap_or(path);
                    let opened = Library::open(&path, name);
                    return opened
                        .map(Some)
                        .map_err(|reason| CudaError::BrokenLibrary { name, reason });
                }
            }
            search.places.push(named.display().to_string());
        }
        let found = names.iter().find_map(|name| search.opened(Path::new(name), name));
        search.places.push("the loader's path".to_owned());
        Ok(found)
    }
}

/// What the system's loader says of a file that there is not.
const ABSENT: &str = "No such file";

/// Where a library was looked for, and why it was not opened.
struct Search {
    places: Vec<String>,
    reason: String,
}

impl Search {
    fn new() -> Self {
        Self { places: Vec::new(), reason: ABSENT.to_owned() }
    }

    fn opened(&mut self, path: &Path, name: &'static str) -> Option<Library> {
        let said = match Library::open(path, name) {
            Ok(library) => return Some(library),
            Err(said) => said,
        };
        // That one is broken tells more than that another is not there.
        if self.reason.contains(ABSENT) && !said.contains(ABSENT) {
            self.reason = said;
        }
        None
    }

    fn failure(self, name: &'static str) -> CudaError {
        let Self { places, reason } = self;
        match reason.contains(ABSENT) {
            true => CudaError::NoLibrary { name, reason, places },
            false => CudaError::BrokenLibrary { name, reason },
        }
    }
}

/// Prints where python3 keeps NVIDIA's packages. They are looked for, not imported, and not in the current folder, where a file of
/// anybody could be run by that name.
const PYTHON: &str = "\
import sys
sys.path = [path for path in sys.path if path]
import importlib.util
found = importlib.util.find_spec('nvidia')
print('\\n'.join(found.submodule_search_locations or []) if found else '')";

/// `nvidia/*/lib` of python3's packages; none without Python.
fn python_directories() -> Vec<PathBuf> {
    let Ok(output) = Command::new("python3").args(["-c", PYTHON]).output() else {
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

#[cfg(test)]
mod tests {
    use std::fs;

    use testkit::test_dir::TestDir;

    use super::*;

    #[test]
    fn a_package_in_the_current_folder_is_neither_run_nor_found() {
        let dir = TestDir::new("cuda-python");
        let (package, trace) = (dir.path().join("nvidia"), dir.path().join("trace"));
        fs::create_dir_all(package.join("cublas/lib")).unwrap();
        let program = format!("open({:?}, 'w').close()", trace.display().to_string());
        fs::write(package.join("__init__.py"), program).unwrap();
        let mut command = Command::new("python3");
        let Ok(output) = command.args(["-c", PYTHON]).current_dir(dir.path()).output() else {
            return;
        };
        let found = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        assert!(!trace.exists() && !found.contains("cuda-python"), "{found}");
    }

    #[test]
    fn a_library_of_the_named_folder_is_opened_or_refused() {
        let dir = TestDir::new("cuda-broken");
        let name = "libcublasLt.so.13";
        let absent = LibraryPath::new(Some(dir.path().to_owned())).open_driver("libnone.so.9");
        assert!(matches!(absent, Err(CudaError::NoLibrary { name: "libnone.so.9", .. })));
        fs::write(dir.path().join(name), "no library").unwrap();
        let broken = LibraryPath::new(Some(dir.path().to_owned())).open(&[name]);
        assert!(matches!(broken, Err(CudaError::BrokenLibrary { name: "libcublasLt.so.13", .. })));
    }
}
