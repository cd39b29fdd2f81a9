//! Golden files: outputs of independent implementations, as safetensors under `golden/` of the workspace.

use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The tensors of one golden file, by name.
#[derive(Debug)]
pub struct Golden {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
}

#[derive(Debug)]
struct Tensor {
    shape: Vec<usize>,
    values: Values,
}

#[derive(Debug)]
enum Values {
    F32(Vec<f32>),
    I64(Vec<i64>),
    U8(Vec<u8>),
}

/// The root of the workspace, where `golden/` is.
pub fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("this crate is two folders below the root")
        .to_path_buf()
}

/// Reads a golden file. `path` is relative to the workspace root. f16 and bf16 tensors are widened to f32, i32 to i64.
///
/// # Panics
/// When the file is missing, is not safetensors, or holds another type.
#[track_caller]
pub fn load(path: impl AsRef<Path>) -> Golden {
    let path = workspace_root().join(path);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) => panic!("golden file {} cannot be read: {error}", path.display()),
    };
    let file = match SafeTensors::deserialize(&bytes) {
        Ok(file) => file,
        Err(error) => panic!("golden file {} is not safetensors: {error}", path.display()),
    };
    let mut tensors = BTreeMap::new();
    for (name, view) in file.iter() {
        let Some(values) = Values::read(view.dtype(), view.data()) else {
            panic!(
                "tensor `{name}` in golden file {} has type {:?}, expected F32, F16, BF16, I64, I32 or U8",
                path.display(),
                view.dtype()
            );
        };
        tensors.insert(name.to_owned(), Tensor { shape: view.shape().to_vec(), values });
    }
    Golden { path, tensors }
}

impl Values {
    fn kind(&self) -> &'static str {
        match self {
            Self::F32(_) => "f32",
            Self::I64(_) => "i64",
            Self::U8(_) => "u8",
        }
    }

    fn read(dtype: Dtype, bytes: &[u8]) -> Option<Self> {
        let halves = |widen: fn([u8; 2]) -> f32| {
            Self::F32(bytes.as_chunks::<2>().0.iter().map(|&b| widen(b)).collect())
        };
        let words = bytes.as_chunks::<4>().0.iter();
        Some(match dtype {
            Dtype::F32 => Self::F32(words.map(|&b| f32::from_le_bytes(b)).collect()),
            Dtype::F16 => halves(|b| half::f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => halves(|b| half::bf16::from_le_bytes(b).to_f32()),
            Dtype::I32 => Self::I64(words.map(|&b| i64::from(i32::from_le_bytes(b))).collect()),
            Dtype::I64 => {
                let longs = bytes.as_chunks::<8>().0.iter();
                Self::I64(longs.map(|&b| i64::from_le_bytes(b)).collect())
            }
            Dtype::U8 => Self::U8(bytes.to_vec()),
            _ => return None,
        })
    }
}

impl Golden {
    /// All names, ascending.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor, slowest axis first.
    ///
    /// # Panics
    /// When there is no such tensor.
    #[track_caller]
    pub fn shape(&self, name: &str) -> &[usize] {
        &self.tensor(name).shape
    }

    /// The values of a floating-point tensor, last axis fastest.
    ///
    /// # Panics
    /// When there is no such tensor, or it holds whole numbers.
    #[track_caller]
    pub fn f32(&self, name: &str) -> &[f32] {
        match &self.tensor(name).values {
            Values::F32(values) => values,
            other => panic!("tensor `{name}` in {} holds {}", self.path.display(), other.kind()),
        }
    }

    /// The values of a whole-number tensor, last axis fastest.
    ///
    /// # Panics
    /// When there is no such tensor, or it holds floating-point numbers.
    #[track_caller]
    pub fn i64(&self, name: &str) -> &[i64] {
        match &self.tensor(name).values {
            Values::I64(values) => values,
            other => panic!("tensor `{name}` in {} holds {}", self.path.display(), other.kind()),
        }
    }

    /// The bytes of a tensor of bytes.
    ///
    /// # Panics
    /// When there is no such tensor, or it holds numbers.
    #[track_caller]
    pub fn u8(&self, name: &str) -> &[u8] {
        match &self.tensor(name).values {
            Values::U8(values) => values,
            other => panic!("tensor `{name}` in {} holds {}", self.path.display(), other.kind()),
        }
    }

    #[track_caller]
    fn tensor(&self, name: &str) -> &Tensor {
        match self.tensors.get(name) {
            Some(tensor) => tensor,
            None => panic!(
                "golden file {} has no tensor `{name}`, only {:?}",
                self.path.display(),
                self.tensors.keys()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Golden, load, workspace_root};
    use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
    use std::fs;
    use std::path::PathBuf;

    /// A file in the system's temporary folder, removed at the end of the test.
    struct TemporaryFile(PathBuf);

    impl TemporaryFile {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("testkit-{}-{name}", std::process::id())))
        }

        fn write(&self, tensors: &[(&str, Dtype, &[usize], &[u8])]) {
            let views = tensors.iter().map(|&(name, dtype, shape, bytes)| {
                (name, TensorView::new(dtype, shape.to_vec(), bytes).unwrap())
            });
            serialize_to_file(views, None, &self.0).unwrap();
        }
    }

    impl Drop for TemporaryFile {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn mixed(name: &str) -> Golden {
        let file = TemporaryFile::new(name);
        let floats: Vec<u8> = [1.5_f32, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let longs: Vec<u8> = [7_i64, -8].iter().flat_map(|x| x.to_le_bytes()).collect();
        let halves = half::bf16::from_f32(0.25).to_le_bytes();
        let ints = (-3_i32).to_le_bytes();
        file.write(&[
            ("floats", Dtype::F32, &[2, 1], &floats),
            ("longs", Dtype::I64, &[2], &longs),
            ("halves", Dtype::BF16, &[1, 1, 1], &halves),
            ("ints", Dtype::I32, &[1], &ints),
        ]);
        load(&file.0)
    }

    #[test]
    fn values_and_shapes_come_back() {
        let golden = mixed("values");
        assert_eq!(golden.names().collect::<Vec<_>>(), ["floats", "halves", "ints", "longs"]);
        assert_eq!(golden.f32("floats"), [1.5, -2.0]);
        assert_eq!(golden.shape("floats"), [2, 1]);
        assert_eq!(golden.i64("longs"), [7, -8]);
        assert_eq!(golden.f32("halves"), [0.25]);
        assert_eq!(golden.shape("halves"), [1, 1, 1]);
        assert_eq!(golden.i64("ints"), [-3]);
    }

    #[test]
    #[should_panic(expected = "has no tensor `logits`, only [\"floats\", \"halves\"")]
    fn a_missing_tensor_is_named_beside_the_present_ones() {
        mixed("missing").f32("logits");
    }

    #[test]
    #[should_panic(expected = "tensor `longs` in")]
    fn whole_numbers_are_not_floats() {
        mixed("kinds").f32("longs");
    }

    #[test]
    #[should_panic(expected = "tensor `flags` in golden file")]
    fn another_type_is_refused_by_name() {
        let file = TemporaryFile::new("types");
        file.write(&[("flags", Dtype::BOOL, &[1], &[1])]);
        load(&file.0);
    }

    #[test]
    #[should_panic(expected = "golden/none.safetensors cannot be read")]
    fn a_missing_file_is_named() {
        load("golden/none.safetensors");
    }

    #[test]
    #[should_panic(expected = "is not safetensors")]
    fn another_format_is_refused() {
        load("Cargo.toml");
    }

    #[test]
    fn the_root_holds_this_crate() {
        assert!(workspace_root().join("crates/testkit/src/golden.rs").is_file());
    }
}
