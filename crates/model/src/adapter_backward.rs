//! What a backward pass gives the gradients of: a model, or an adapter beside it.

use kernels::matmul::Write;
use tensor::{Device, LinearScratch, LowRank, LowRankGradients, View, ViewMut};

use crate::adapted::{AdaptedProduct, LoadedAdapter};
use crate::adapter_parameters::{AdapterParameters, Factors};
use crate::parameters::{LayerParameters, Parameters};

/// What is learnt; gradients are added to those that are there.
#[derive(Debug)]
pub enum Learnt<'a> {
    /// All parameters of the model.
    Model(&'a mut Parameters),
    /// The factors of an adapter. The model stays as it is and has no gradients.
    Adapter {
        /// Its changes, as they are computed: [`LoadedAdapter::trainable`].
        adapter: &'a LoadedAdapter,
        /// Gradients of its factors.
        gradients: &'a mut AdapterParameters,
    },
}

/// Working memory of [`Learnt::changes_backward`].
pub(crate) type ChangesScratch<'a> = (&'a mut Option<LowRankGradients>, &'a mut LinearScratch);

impl Learnt<'_> {
    /// The adapter, with which the forward pass is run.
    pub(crate) fn adapter(&self) -> Option<&LoadedAdapter> {
        match self {
            Self::Model(_) => None,
            Self::Adapter { adapter, .. } => Some(adapter),
        }
    }

    /// Gradients of the model, where it is learnt.
    pub(crate) fn model(&mut self) -> Option<&mut Parameters> {
        match self {
            Self::Model(gradients) => Some(gradients),
            Self::Adapter { .. } => None,
        }
    }

    /// Gradients of a layer of the model, where it is learnt.
    pub(crate) fn layer(&mut self, layer_idx: usize) -> Option<&mut LayerParameters> {
        self.model().map(|gradients| &mut gradients.layers[layer_idx])
    }

    /// Whether nothing is learnt below the queries, keys and values of a layer, so that the gradient of its input is of no use.
    pub(crate) fn ends_at(&self, layer_idx: usize) -> bool {
        layer_idx == 0 && matches!(self, Self::Adapter { .. })
    }

    /// Gradients through and of the changes to a product: over that of its input, where one is given, and added to those of the
    /// factors. The product's own gradient of its input comes after them, written as this says: added, it is read back by a product
    /// that has time for it.
    pub(crate) fn changes_backward(
        &mut self,
        device: &Device,
        product: (usize, AdaptedProduct),
        (x, d_y): (View<'_>, View<'_>),
        mut d_x: Option<ViewMut<'_>>,
        (scratch, weights): ChangesScratch<'_>,
    ) -> Write {
        let scaling = self.scaling();
        let mut write = Write::Overwrite;
        for (change, gradients) in self.changes(product) {
            let scratch = of_adapter(scratch);
            let d_x = d_x.as_mut().map(|d_x| (d_x.reborrow(), write));
            change.backward_input(device, d_y, d_x, scratch);
            write = Write::Accumulate;
            let gradients = [gradients.a.view_mut(), gradients.b.view_mut()];
            change.backward_factors(device, (x, d_y), scaling, gradients, scratch, weights);
        }
        write
    }

    /// The first half of [`Learnt::changes_backward`], for a product whose input is computed again after it.
    ///
    /// # Panics
    /// When the product has several changes, of which the scratch could hold the last only.
    pub(crate) fn change_backward_input(
        &mut self,
        device: &Device,
        product: (usize, AdaptedProduct),
        d_y: View<'_>,
        d_x: ViewMut<'_>,
        scratch: &mut Option<LowRankGradients>,
    ) -> Write {
        let mut changes = self.changes(product);
        let Some((change, _)) = changes.next() else { return Write::Overwrite };
        assert!(changes.next().is_none(), "one change to {product:?}");
        change.backward_input(device, d_y, Some((d_x, Write::Overwrite)), of_adapter(scratch));
        Write::Accumulate
    }

    /// The second half.
    pub(crate) fn change_backward_factors(
        &mut self,
        device: &Device,
        product: (usize, AdaptedProduct),
        operands: (View<'_>, View<'_>),
        (scratch, weights): ChangesScratch<'_>,
    ) {
        let scaling = self.scaling();
        let Some((change, gradients)) = self.changes(product).next() else { return };
        let gradients = [gradients.a.view_mut(), gradients.b.view_mut()];
        change.backward_factors(device, operands, scaling, gradients, of_adapter(scratch), weights);
    }

    fn scaling(&self) -> f32 {
        match self {
            Self::Model(_) => 1.0,
            Self::Adapter { gradients, .. } => gradients.settings().scaling() as f32,
        }
    }

    /// The changes to a product and the gradients of their factors.
    fn changes(
        &mut self,
        (layer_idx, product): (usize, AdaptedProduct),
    ) -> impl Iterator<Item = (&LowRank, &mut Factors)> {
        let some = match self {
            Self::Model(_) => None,
            Self::Adapter { adapter, gradients } => {
                let changes = adapter.changes(layer_idx, product);
                let gradients = gradients.layers[layer_idx].of_mut(product);
                assert_eq!(changes.len(), gradients.len(), "gradients of another adapter");
                Some(changes.iter().zip(gradients))
            }
        };
        some.into_iter().flatten()
    }
}

fn of_adapter(scratch: &mut Option<LowRankGradients>) -> &mut LowRankGradients {
    scratch.as_mut().expect("a workspace for an adapter")
}
