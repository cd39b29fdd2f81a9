//! What is known of a batch before it is computed, and the same for all layers: its documents or cached sequences, and the
//! angles of its positions. On a GPU all of it is copied there once.

use cuda::ops::attention_packed::PackedRows as PackedRowsOnGpu;
use cuda::ops::attention_paged::{CachedBatch as CachedBatchOnGpu, CachedSequence};
use cuda::ops::rope::DeviceRopeTable;
use kernels::attention::{HeadShape, KEY_BLOCK, SequenceRows};
use kernels::rope::{self, RopeFrequencies};

use crate::Device;

/// Documents that stand one after the other in a batch and do not see one another.
#[derive(Debug)]
pub struct PackedRows {
    /// Rows where they begin, ascending from 0 to the number of rows.
    segment_starts: Vec<u32>,
    place: Place<Vec<Vec<u32>>, PackedRowsOnGpu>,
}

/// What attention needs where it runs.
#[derive(Debug)]
enum Place<H, G> {
    Host(H),
    Gpu(G),
}

impl PackedRows {
    /// Documents that begin at the rows given, the last of which is the number of rows.
    #[must_use]
    pub fn new(device: &Device, segment_starts: &[u32]) -> Self {
        let place = match device {
            Device::Cuda { gpu, .. } => Place::Gpu(PackedRowsOnGpu::new(gpu, segment_starts)),
            Device::Cpu(_) => {
                let mut n_blocks = 0;
                let tables = segment_starts.windows(2).map(|ends| {
                    let n = (ends[1] - ends[0]).div_ceil(KEY_BLOCK as u32);
                    n_blocks += n;
                    (n_blocks - n..n_blocks).collect()
                });
                Place::Host(tables.collect())
            }
        };
        Self { segment_starts: segment_starts.to_vec(), place }
    }

    /// Blocks of keys and values that they take in a layer; none on a GPU, where attention reads them from the rows.
    #[must_use]
    pub fn n_blocks(&self) -> usize {
        match &self.place {
            Place::Host(tables) => tables.iter().map(Vec::len).sum(),
            Place::Gpu(_) => 0,
        }
    }

    pub(crate) fn segment_starts(&self) -> &[u32] {
        &self.segment_starts
    }

    pub(crate) fn sequences(&self) -> Vec<SequenceRows<'_>> {
        let Place::Host(tables) = &self.place else { panic!("documents on a GPU") };
        let documents = self.segment_starts.windows(2).zip(tables);
        let documents = documents.map(|(ends, block_table)| SequenceRows {
            first_row: ends[0] as usize,
            n_rows: (ends[1] - ends[0]) as usize,
            first_position: 0,
            block_table,
        });
        documents.collect()
    }

    pub(crate) fn on_gpu(&self) -> &PackedRowsOnGpu {
        match &self.place {
            Place::Gpu(rows) => rows,
            Place::Host(_) => panic!("documents in this machine's memory"),
        }
    }
}

/// Sequences whose earlier keys and values are in blocks.
#[derive(Debug)]
pub struct CachedBatch<'a> {
    sequences: &'a [CachedSequence<'a>],
    /// One for each window that a layer has.
    on_gpu: Vec<(HeadShape, CachedBatchOnGpu)>,
}

impl<'a> CachedBatch<'a> {
    /// A batch of sequences for a model whose layers have these heads.
    #[must_use]
    pub fn new(
        device: &Device,
        layers: impl Iterator<Item = HeadShape>,
        sequences: &'a [CachedSequence<'a>],
    ) -> Self {
        let mut on_gpu: Vec<(HeadShape, CachedBatchOnGpu)> = Vec::new();
        if let Device::Cuda { gpu, .. } = device {
            for shape in layers {
                if on_gpu.iter().all(|(known, _)| *known != shape) {
                    on_gpu.push((shape, CachedBatchOnGpu::new(gpu, sequences, shape)));
                }
            }
        }
        Self { sequences, on_gpu }
    }

    pub(crate) fn sequences(&self, layer_idx: usize) -> Vec<SequenceRows<'a>> {
        let sequences = self.sequences.iter().map(|sequence| SequenceRows {
            first_row: sequence.first_row,
            n_rows: sequence.n_rows,
            first_position: sequence.first_position,
            block_table: &sequence.block_tables[layer_idx],
        });
        sequences.collect()
    }

    pub(crate) fn on_gpu(&self, shape: HeadShape) -> &CachedBatchOnGpu {
        let found = self.on_gpu.iter().find(|(known, _)| *known == shape);
        &found.expect("a batch for the GPU and a layer of these heads").1
    }
}

/// Angles of the positions of a batch ([`rope::RopeTable`]).
#[derive(Debug)]
pub struct RopeTable {
    host: rope::RopeTable,
    /// Of the same batch.
    on_gpu: Option<DeviceRopeTable>,
    /// What the table was set for last.
    positions: Vec<u32>,
}

impl RopeTable {
    /// An empty table with room for `max_rows` rows.
    #[must_use]
    pub fn with_capacity(max_rows: usize, head_dim: usize) -> Self {
        Self {
            host: rope::RopeTable::with_capacity(max_rows, head_dim),
            on_gpu: None,
            positions: Vec::with_capacity(max_rows),
        }
    }

    /// Bytes of a table with room for `max_rows` rows in this machine's memory.
    #[must_use]
    pub fn bytes_for(max_rows: usize, head_dim: usize) -> usize {
        rope::RopeTable::bytes_for(max_rows, head_dim) + max_rows * size_of::<u32>()
    }

    /// Bytes that there is room for.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.host.n_bytes() + self.positions.capacity() * size_of::<u32>()
    }

    /// The table of a batch whose rows have the positions given. The frequencies are always those of one model, so that
    /// nothing is done where the positions are those of the last batch.
    pub fn set(&mut self, device: &Device, frequencies: &RopeFrequencies, positions: &[u32]) {
        if self.positions == positions && !positions.is_empty() {
            return;
        }
        self.positions.clear();
        self.positions.extend_from_slice(positions);
        self.host.set(device.compute(), frequencies, positions);
        self.on_gpu = match device {
            Device::Cpu(_) => None,
            Device::Cuda { gpu, .. } => Some(DeviceRopeTable::new(gpu, &self.host)),
        };
    }

    pub(crate) fn host(&self) -> &rope::RopeTable {
        &self.host
    }

    pub(crate) fn on_gpu(&self) -> &DeviceRopeTable {
        self.on_gpu.as_ref().expect("a table that was set for the GPU")
    }
}
