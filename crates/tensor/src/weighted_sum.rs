//! Sums over batches that are waited for once.

use cuda::ops::elementwise::DeviceSum;
use cuda::{DeviceMatrix, NumberType};

use crate::Device;
use crate::tensor::View;

/// `sum_i weights[i] values[i]` over batches of f32 numbers, products and sums in f64. A GPU adds where the numbers are, and nothing
/// waits for it until the sum is read.
#[derive(Debug)]
pub struct WeightedSum {
    place: Place,
}

#[derive(Debug)]
enum Place {
    Host(f64),
    Gpu(DeviceSum),
}

impl WeightedSum {
    /// Nothing so far, of numbers on a device.
    #[must_use]
    pub fn zero(device: &Device) -> Self {
        let place = match device {
            Device::Cpu(_) => Place::Host(0.0),
            Device::Cuda { gpu, .. } => Place::Gpu(DeviceSum::zero(gpu)),
        };
        Self { place }
    }

    /// Adds a batch: on the processors its sum in order, on a GPU as [`DeviceSum::add_weighted`] does.
    ///
    /// # Panics
    /// When there is not one weight for each number, or the numbers are not f32 or on another device.
    pub fn add(&mut self, device: &Device, values: View<'_>, weights: &[f32]) {
        match &mut self.place {
            Place::Host(sum) => {
                let values = values.f32();
                assert_eq!(values.len(), weights.len(), "weights of what is added");
                let products = values.iter().zip(weights);
                let products = products.map(|(&x, &weight)| f64::from(x) * f64::from(weight));
                *sum += products.sum::<f64>();
            }
            Place::Gpu(sum) => {
                let gpu = device.gpu();
                let weights = DeviceMatrix::of_f32(gpu, NumberType::F32, weights, 1);
                sum.add_weighted(gpu, values.on_gpu(), weights.view());
            }
        }
    }

    /// What was added so far. Waits for a GPU.
    #[must_use]
    pub fn read(&self) -> f64 {
        match &self.place {
            Place::Host(sum) => *sum,
            Place::Gpu(sum) => sum.read(),
        }
    }
}
