//! Products of matrices by cuBLASLt, each shape with the algorithm that was found for it once.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Mutex;

use kernels::matmul::Write;

use crate::driver::Stream;
use crate::error::CudaError;
use crate::gpu::{Gpu, lock};
use crate::library::{LibraryPath, functions};
use crate::memory::{Matrix, MatrixMut, NumberType};

type Handle = *mut c_void;
type Descriptor = *mut c_void;
type Layout = *mut c_void;
type Preference = *mut c_void;

/// `CUBLAS_COMPUTE_32F`: sums of products in f32, operands as they are.
const COMPUTE_F32: i32 = 68;
/// `CUBLASLT_MATMUL_DESC_TRANSA` and `_TRANSB`.
const TRANSPOSE: [i32; 2] = [3, 4];
/// `CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES`.
const MAX_WORKSPACE: i32 = 1;
/// `CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK`.
const REDUCTIONS: i32 = 3;
/// `CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE`: sums that are split are added in f32. The other schemes add them in the type of the output.
const REDUCTION_IN_F32: u32 = 2;
/// `CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES` and those of B, C and D.
const MIN_ALIGNMENT: [i32; 4] = [5, 6, 7, 8];
/// What the library's documentation recommends for Hopper.
const WORKSPACE_BYTES: usize = 64 << 20;
/// Algorithms that are tried for a large product.
const N_TRIED: usize = 40;
/// Runs of each in a row: a GPU that is let go between two is faster in the next than where products follow one another.
const RUNS_OF_EACH: usize = 3;
/// Of so many that were fastest the times are read again, in turns, as they are often within a hundredth of one another.
const N_FINALISTS: usize = 4;
const FINAL_ROUNDS: usize = 5;
const RUNS_OF_ROUND: usize = 4;
/// Operations of a product from which on algorithms are timed, not only asked for.
const TRIED_FROM_FLOPS: f64 = 2e9;
/// Which use of a shape times them: those of a batch that comes once are not worth it.
const TIMED_USE: u32 = 4;

functions! {
    /// Functions of cuBLASLt; names and parameters as in `cublasLt.h`.
    Functions {
        create = "cublasLtCreate" (*mut Handle);
        create_descriptor = "cublasLtMatmulDescCreate" (*mut Descriptor, i32, i32);
        set_descriptor = "cublasLtMatmulDescSetAttribute" (Descriptor, i32, *const c_void, usize);
        create_layout = "cublasLtMatrixLayoutCreate" (*mut Layout, i32, u64, u64, i64);
        create_preference = "cublasLtMatmulPreferenceCreate" (*mut Preference);
        set_preference = "cublasLtMatmulPreferenceSetAttribute" (
            Preference, i32, *const c_void, usize
        );
        destroy_preference = "cublasLtMatmulPreferenceDestroy" (Preference);
        heuristic = "cublasLtMatmulAlgoGetHeuristic" (
            Handle, Descriptor, Layout, Layout, Layout, Layout, Preference, i32,
            *mut Heuristic, *mut i32
        );
        matmul = "cublasLtMatmul" (
            Handle, Descriptor, *const f32, u64, Layout, u64, Layout, *const f32, u64, Layout,
            u64, Layout, *const Algorithm, u64, usize, Stream
        );
    }
}

/// `cublasLtMatmulAlgo_t`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Algorithm([u64; 8]);

/// `cublasLtMatmulHeuristicResult_t`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Heuristic {
    algorithm: Algorithm,
    workspace_bytes: usize,
    state: i32,
    waves: f32,
    reserved: [i32; 4],
}

/// cuBLASLt, opened.
pub(crate) struct Blas {
    functions: Functions,
    handle: Handle,
    version: usize,
    plans: Mutex<HashMap<Shape, KnownShape>>,
}

/// `D (+)= op(A) op(B)` with columns stored one after the other, as the library counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    /// Of A, B, and D.
    types: [NumberType; 3],
    transposed: [bool; 2],
    /// Rows of D, columns of D, inner dimension.
    dims: [usize; 3],
    /// Distance of columns of A, B and D, in numbers.
    strides: [usize; 3],
    /// Bytes that the addresses of A, B and D are multiples of.
    alignments: [u32; 3],
    accumulates: bool,
}

/// How a shape is computed from now on.
struct KnownShape {
    plan: Plan,
    /// What is to be timed against it when the shape has come often enough.
    others: Vec<Plan>,
    n_uses: u32,
}

/// How a shape is computed.
#[derive(Clone, Copy)]
struct Plan {
    descriptor: Descriptor,
    /// Of A, B and D.
    layouts: [Layout; 3],
    algorithm: Algorithm,
    workspace_bytes: usize,
}

#[expect(unsafe_code, reason = "calls of cuBLASLt")]
impl Blas {
    pub(crate) fn open(path: &LibraryPath) -> Result<Self, CudaError> {
        let library = path.open(&["libcublasLt.so.13", "libcublasLt.so.12"])?;
        let functions = Functions::of(&library)?;
        let version = library.symbol("cublasLtGetVersion")?;
        // SAFETY: the function of this name takes nothing and gives a size_t.
        let version: extern "C" fn() -> usize = unsafe { std::mem::transmute(version) };
        let mut handle = std::ptr::null_mut();
        // SAFETY: a pointer to a local variable; the context of the GPU is current.
        check("cublasLtCreate", unsafe { (functions.create)(&raw mut handle) })?;
        Ok(Self { functions, handle, version: version(), plans: Mutex::new(HashMap::new()) })
    }

    pub(crate) fn version(&self) -> usize {
        self.version
    }

    fn multiply(&self, gpu: &Gpu, shape: Shape, addresses: [u64; 3]) {
        if shape.dims[0] == 0 || shape.dims[1] == 0 {
            return;
        }
        let plan = self.plan(gpu, shape, addresses);
        let [m, n, k] = shape.dims;
        let name = || format!("product {m} x {n} x {k}");
        gpu.noted(name, || self.run(gpu, shape, plan, addresses));
    }

    fn run(&self, gpu: &Gpu, shape: Shape, plan: Plan, [a, b, d]: [u64; 3]) {
        let workspace = gpu.memory(plan.workspace_bytes);
        let (alpha, beta) = (1.0_f32, if shape.accumulates { 1.0_f32 } else { 0.0 });
        let [a_layout, b_layout, d_layout] = plan.layouts;
        gpu.driver();
        // SAFETY: descriptor and layouts were made for this shape and are never destroyed; the callers checked that the
        // matrices have it. The workspace is freed in the order of the stream.
        let status = unsafe {
            (self.functions.matmul)(
                self.handle,
                plan.descriptor,
                &raw const alpha,
                a,
                a_layout,
                b,
                b_layout,
                &raw const beta,
                d,
                d_layout,
                d,
                d_layout,
                &raw const plan.algorithm,
                workspace.address(),
                plan.workspace_bytes,
                gpu.stream(),
            )
        };
        if let Err(error) = check("cublasLtMatmul", status) {
            panic!("{shape:?}: {error}");
        }
    }

    /// The algorithm that the library recommends; of a large product that comes often, the fastest of several that it recommends.
    fn plan(&self, gpu: &Gpu, shape: Shape, addresses: [u64; 3]) -> Plan {
        let mut plans = lock(&self.plans);
        let known = plans.entry(shape).or_insert_with(|| self.known(shape));
        known.n_uses = known.n_uses.saturating_add(1);
        if known.n_uses == TIMED_USE && !known.others.is_empty() {
            let others = std::mem::take(&mut known.others);
            known.plan = self.fastest(gpu, shape, [&[known.plan], &others[..]].concat(), addresses);
        }
        known.plan
    }

    /// What the library recommends for a shape, the first choice and the others of a large product.
    fn known(&self, shape: Shape) -> KnownShape {
        let (descriptor, layouts) = self.describe(shape);
        let found = self.heuristics(shape, descriptor, layouts);
        let mut plans = found.iter().map(|found| Plan {
            descriptor,
            layouts,
            algorithm: found.algorithm,
            workspace_bytes: found.workspace_bytes,
        });
        let plan = plans.next().expect("there is at least one");
        let flops = 2.0 * shape.dims.iter().map(|&n| n as f64).product::<f64>();
        let others = if flops < TRIED_FROM_FLOPS { Vec::new() } else { plans.collect() };
        KnownShape { plan, others, n_uses: 0 }
    }

    fn fastest(&self, gpu: &Gpu, shape: Shape, plans: Vec<Plan>, addresses: [u64; 3]) -> Plan {
        // What is tried must not write over what is there.
        let bytes = shape.strides[2] * shape.dims[1] * shape.types[2].bytes();
        let scratch = gpu.memory(bytes);
        scratch.fill(0);
        let addresses = [addresses[0], addresses[1], scratch.address()];
        let seconds = |plan: &Plan, n_runs: usize| {
            gpu.timed(|| (0..n_runs).for_each(|_| self.run(gpu, shape, *plan, addresses)))
        };
        let by_time = |timed: &mut Vec<(f64, Plan)>| timed.sort_by(|a, b| a.0.total_cmp(&b.0));
        let first = |plan: Plan| {
            // The first run of an algorithm loads it.
            self.run(gpu, shape, plan, addresses);
            (seconds(&plan, RUNS_OF_EACH), plan)
        };
        let mut timed: Vec<(f64, Plan)> = plans.into_iter().map(first).collect();
        by_time(&mut timed);
        timed.truncate(N_FINALISTS);
        let mut rounds: Vec<Vec<f64>> = vec![Vec::new(); timed.len()];
        for _ in 0..FINAL_ROUNDS {
            for (times, (_, plan)) in rounds.iter_mut().zip(&timed) {
                times.push(seconds(plan, RUNS_OF_ROUND));
            }
        }
        for (times, (median, _)) in rounds.iter_mut().zip(&mut timed) {
            times.sort_by(f64::total_cmp);
            *median = times[FINAL_ROUNDS / 2];
        }
        by_time(&mut timed);
        timed.first().expect("there is at least one").1
    }

    fn describe(&self, shape: Shape) -> (Descriptor, [Layout; 3]) {
        let Shape { types, transposed, dims: [m, n, k], strides, .. } = shape;
        let mut descriptor = std::ptr::null_mut();
        // SAFETY: pointers to local variables; attributes are of the sizes given.
        unsafe {
            let created = (self.functions.create_descriptor)(
                &raw mut descriptor,
                COMPUTE_F32,
                number(NumberType::F32),
            );
            expect("cublasLtMatmulDescCreate", created);
            for (attribute, transposed) in TRANSPOSE.into_iter().zip(transposed) {
                let operation = i32::from(transposed);
                let pointer = (&raw const operation).cast();
                let set = (self.functions.set_descriptor)(descriptor, attribute, pointer, 4);
                expect("cublasLtMatmulDescSetAttribute", set);
            }
        }
        let stored = |[rows, columns]: [usize; 2], transposed| match transposed {
            true => [columns, rows],
            false => [rows, columns],
        };
        let shapes = [stored([m, k], transposed[0]), stored([k, n], transposed[1]), [m, n]];
        let layouts = [0, 1, 2].map(|i| {
            let mut layout = std::ptr::null_mut();
            let [rows, columns] = shapes[i].map(|n| n as u64);
            // SAFETY: a pointer to a local variable.
            let created = unsafe {
                (self.functions.create_layout)(
                    &raw mut layout,
                    number(types[i]),
                    rows,
                    columns,
                    strides[i] as i64,
                )
            };
            expect("cublasLtMatrixLayoutCreate", created);
            layout
        });
        (descriptor, layouts)
    }

    /// At least one.
    fn heuristics(
        &self,
        shape: Shape,
        descriptor: Descriptor,
        layouts: [Layout; 3],
    ) -> Vec<Heuristic> {
        let [a, b, d] = layouts;
        let [a_bytes, b_bytes, d_bytes] = shape.alignments;
        let mut preference = std::ptr::null_mut();
        let mut found = [Heuristic::default(); N_TRIED];
        let mut n_found = 0;
        // SAFETY: pointers to local variables; attributes are of the sizes given.
        unsafe {
            let created = (self.functions.create_preference)(&raw mut preference);
            expect("cublasLtMatmulPreferenceCreate", created);
            let bytes = WORKSPACE_BYTES;
            let pointer = (&raw const bytes).cast();
            let set = (self.functions.set_preference)(preference, MAX_WORKSPACE, pointer, 8);
            expect("cublasLtMatmulPreferenceSetAttribute", set);
            if shape.types[2] == NumberType::Bf16 {
                let reduction = REDUCTION_IN_F32;
                let pointer = (&raw const reduction).cast();
                let set = (self.functions.set_preference)(preference, REDUCTIONS, pointer, 4);
                expect("cublasLtMatmulPreferenceSetAttribute", set);
            }
            for (attribute, bytes) in
                MIN_ALIGNMENT.into_iter().zip([a_bytes, b_bytes, d_bytes, d_bytes])
            {
                let pointer = (&raw const bytes).cast();
                let set = (self.functions.set_preference)(preference, attribute, pointer, 4);
                expect("cublasLtMatmulPreferenceSetAttribute", set);
            }
            let status = (self.functions.heuristic)(
                self.handle,
                descriptor,
                a,
                b,
                d,
                d,
                preference,
                N_TRIED as i32,
                found.as_mut_ptr(),
                &raw mut n_found,
            );
            (self.functions.destroy_preference)(preference);
            if let Err(error) = check("cublasLtMatmulAlgoGetHeuristic", status) {
                panic!("{shape:?}: {error}");
            }
        }
        let found: Vec<Heuristic> =
            found[..n_found as usize].iter().copied().filter(|found| found.state == 0).collect();
        assert!(!found.is_empty(), "cuBLASLt has no algorithm for {shape:?}");
        found
    }
}

fn check(call: &'static str, status: i32) -> Result<(), CudaError> {
    match status {
        0 => Ok(()),
        code => Err(CudaError::Blas { call, code }),
    }
}

fn expect(call: &'static str, status: i32) {
    if let Err(error) = check(call, status) {
        panic!("{error}");
    }
}

/// `cudaDataType_t`.
fn number(number_type: NumberType) -> i32 {
    match number_type {
        NumberType::F32 => 0,
        NumberType::Bf16 => 14,
    }
}

/// The largest power of two up to 256 that an address is a multiple of.
fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

/// Where the columns of a matrix from `first` on begin.
fn column_address(matrix: Matrix<'_>, first: usize) -> u64 {
    matrix.address() + (first * matrix.number_type().bytes()) as u64
}

/// `y[t, first + o] (+)= sum_i x[t, i] w[o, i]`.
///
/// Shapes: x `[tokens, n_in]`, w `[n_out, n_in]`, of one number type; y `[tokens, at least first + n_out]`, f32 or of that type.
/// Numerics: sums in f32, in an order that cuBLASLt chooses by the shape, rounded to y's type.
///
/// # Panics
/// When a shape or number type does not fit.
pub fn product(
    gpu: &Gpu,
    x: Matrix<'_>,
    w: Matrix<'_>,
    y: MatrixMut<'_>,
    first_column: usize,
    write: Write,
) {
    let (n_tokens, n_in, n_out) = (x.n_rows(), x.width(), w.n_rows());
    assert_eq!(w.width(), n_in, "inner dimension of a product");
    assert_eq!(x.number_type(), w.number_type(), "number types of operands");
    assert_eq!(y.n_rows(), n_tokens, "rows of a product");
    assert!(first_column + n_out <= y.width(), "columns of a product");
    let addresses = [w.address(), x.address(), column_address(y.as_ref(), first_column)];
    let shape = Shape {
        types: [w.number_type(), x.number_type(), y.number_type()],
        transposed: [true, false],
        dims: [n_out, n_tokens, n_in],
        strides: [n_in, n_in, y.width()],
        alignments: addresses.map(alignment),
        accumulates: write == Write::Accumulate,
    };
    gpu.blas().multiply(gpu, shape, addresses);
}

/// Gradient of the input of [`product`]: `d_x[t, i] (+)= sum_o d_y[t, first + o] w[o, i]`.
///
/// Shapes: d_y `[tokens, at least first + n_out]`, w `[n_out, n_in]`, of one number type; d_x `[tokens, n_in]`, f32 or of that type.
///
/// # Panics
/// When a shape or number type does not fit.
pub fn product_backward_input(
    gpu: &Gpu,
    d_y: Matrix<'_>,
    first_column: usize,
    w: Matrix<'_>,
    d_x: MatrixMut<'_>,
    write: Write,
) {
    let (n_tokens, n_out, n_in) = (d_y.n_rows(), w.n_rows(), w.width());
    assert!(first_column + n_out <= d_y.width(), "inner dimension of a product");
    assert_eq!(d_y.number_type(), w.number_type(), "number types of operands");
    assert_eq!([d_x.n_rows(), d_x.width()], [n_tokens, n_in], "shape of a product");
    let addresses = [w.address(), column_address(d_y, first_column), d_x.address()];
    let shape = Shape {
        types: [w.number_type(), d_y.number_type(), d_x.number_type()],
        transposed: [false, false],
        dims: [n_in, n_tokens, n_out],
        strides: [n_in, d_y.width(), n_in],
        alignments: addresses.map(alignment),
        accumulates: write == Write::Accumulate,
    };
    gpu.blas().multiply(gpu, shape, addresses);
}

/// Gradient of the weight of [`product`]: `d_w[o, i] += sum_t d_y[t, first + o] x[t, i]`. Accumulates.
///
/// Shapes: d_y `[tokens, at least first + n_out]`, x `[tokens, n_in]`, of one number type; d_w f32 `[n_out, n_in]`.
///
/// # Panics
/// When a shape or number type does not fit.
pub fn product_backward_weight(
    gpu: &Gpu,
    d_y: Matrix<'_>,
    first_column: usize,
    x: Matrix<'_>,
    d_w: MatrixMut<'_>,
) {
    let (n_tokens, n_out, n_in) = (d_y.n_rows(), d_w.n_rows(), x.width());
    assert!(first_column + n_out <= d_y.width(), "outputs of a product");
    assert_eq!(x.n_rows(), n_tokens, "inner dimension of a product");
    assert_eq!(d_y.number_type(), x.number_type(), "number types of operands");
    assert_eq!(d_w.width(), n_in, "shape of a product");
    if n_tokens == 0 {
        return;
    }
    let addresses = [x.address(), column_address(d_y, first_column), d_w.address()];
    let shape = Shape {
        types: [x.number_type(), d_y.number_type(), d_w.number_type()],
        transposed: [false, true],
        dims: [n_in, n_out, n_tokens],
        strides: [n_in, d_y.width(), n_in],
        alignments: addresses.map(alignment),
        accumulates: true,
    };
    gpu.blas().multiply(gpu, shape, addresses);
}

// SAFETY: the handle may be used from several threads; plans are behind a lock.
#[expect(unsafe_code, reason = "handles of the library are pointers")]
unsafe impl Send for Blas {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "handles of the library are pointers")]
unsafe impl Sync for Blas {}
