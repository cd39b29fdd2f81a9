//! Rotary positions in `config.json`.

use serde_json::{Value, json};

use super::super::{QueryScaling, Rope, RopeScaling};
use super::Kind;
use crate::FormatError;
use crate::fields::{Fields, same};

/// What a model does with positions.
pub(super) struct Positions {
    pub(super) context_len: usize,
    pub(super) rope: Rope,
    pub(super) query_scaling: Option<QueryScaling>,
}

/// `rope_parameters` is the nesting of transformers 5; before, `rope_theta` stood at the top and `rope_scaling` held the rest.
pub(super) fn read(fields: &mut Fields<'_>, kind: Kind) -> Result<Positions, FormatError> {
    let context_len = fields.count("max_position_embeddings", 1, 1 << 28)?;
    let mut theta = fields.number("rope_theta", 1.0, 1e12)?;
    let (mut scaling, mut query_scaling) = (RopeScaling::None, None);
    let mut is_scaled_by = None;
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(value) = fields.take_present(key) else { continue };
        let Value::Object(object) = value else {
            return Err(fields.bad(key, value, "an object or null".to_owned()));
        };
        let name = fields.full_name(key);
        let mut nested = Fields::new(fields.path(), &name, object);
        let (found, found_query_scaling) = read_scaling(&mut nested, context_len)?;
        if found != RopeScaling::None {
            if let Some(other) = is_scaled_by.filter(|_| found != scaling) {
                let expected = format!("the scaling of {other}");
                return Err(fields.bad(key, "another scaling", expected));
            }
            (scaling, is_scaled_by) = (found, Some(key));
        }
        query_scaling = query_scaling.or(found_query_scaling);
        let nested_theta = nested.number("rope_theta", 1.0, 1e12)?;
        nested.refuse_the_rest("it is unknown and could change the rotation")?;
        if let (Some(top), Some(inner)) = (theta, nested_theta)
            && top != inner
        {
            return Err(nested.bad("rope_theta", inner, format!("rope_theta = {top}, as above")));
        }
        theta = theta.or(nested_theta);
    }
    if kind == Kind::Ministral3 && is_scaled_by.is_none() {
        let expected = "the YaRN scaling that the architecture is made with".to_owned();
        return Err(fields.bad("rope_parameters", "missing", expected));
    }
    let rope = Rope { theta: theta.unwrap_or(kind.default_theta()), scaling };
    Ok(Positions { context_len, rope, query_scaling })
}

fn read_scaling(
    fields: &mut Fields<'_>,
    context_len: usize,
) -> Result<(RopeScaling, Option<QueryScaling>), FormatError> {
    match fields.take_present("partial_rotary_factor") {
        None => {}
        Some(factor) if same(&factor, &json!(1.0)) => {}
        Some(factor) => {
            let reason = "every dimension of a head is rotated";
            return Err(fields.unsupported("partial_rotary_factor", factor, reason));
        }
    }
    let old_name = fields.take_present("type");
    let kind = fields.take_present("rope_type").or(old_name).unwrap_or(json!("default"));
    match kind.as_str() {
        Some("default") => Ok((RopeScaling::None, None)),
        Some("linear") => {
            let factor = required(fields, "factor")?;
            Ok((RopeScaling::Linear { factor }, None))
        }
        Some("llama3") => Ok((read_llama3(fields)?, None)),
        Some("yarn") => read_yarn(fields, context_len),
        _ => {
            let reason = "rotations are default, linear, llama3 or yarn";
            Err(fields.unsupported("rope_type", kind, reason))
        }
    }
}

fn required(fields: &mut Fields<'_>, field: &str) -> Result<f64, FormatError> {
    let found = fields.number(field, 1e-3, 1e6)?;
    found.ok_or_else(|| fields.bad(field, "missing", "a number 0.001..=1e6".to_owned()))
}

fn read_llama3(fields: &mut Fields<'_>) -> Result<RopeScaling, FormatError> {
    let low_freq_factor = required(fields, "low_freq_factor")?;
    let high_freq_factor = required(fields, "high_freq_factor")?;
    if high_freq_factor <= low_freq_factor {
        let expected = format!("more than low_freq_factor = {low_freq_factor}");
        return Err(fields.bad("high_freq_factor", high_freq_factor, expected));
    }
    Ok(RopeScaling::Llama3 {
        factor: required(fields, "factor")?,
        low_freq_factor,
        high_freq_factor,
        original_context_len: fields.count("original_max_position_embeddings", 1, 1 << 28)?,
    })
}

/// Absent keys mean what transformers means by them (`_compute_yarn_parameters`).
fn read_yarn(
    fields: &mut Fields<'_>,
    context_len: usize,
) -> Result<(RopeScaling, Option<QueryScaling>), FormatError> {
    let original_context_len = fields.count("original_max_position_embeddings", 1, 1 << 28)?;
    let factor = fields.number("factor", 1e-3, 1e6)?;
    let factor = factor.unwrap_or(context_len as f64 / original_context_len as f64);
    let given_factor = fields.number("attention_factor", 1e-3, 1e3)?;
    let scales = [fields.number("mscale", 0.0, 1e3)?, fields.number("mscale_all_dim", 0.0, 1e3)?];
    let attention_factor = given_factor.unwrap_or(match scales {
        [Some(scale), Some(all)] if scale != 0.0 && all != 0.0 => {
            magnitude(factor, scale) / magnitude(factor, all)
        }
        _ => magnitude(factor, 1.0),
    });
    // Ministral 3 repeats the context here.
    fields.optional_count("max_position_embeddings", 1, 1 << 28)?;
    let beta = fields.number("llama_4_scaling_beta", 0.0, 1e3)?;
    let scaling = RopeScaling::Yarn {
        factor,
        beta_fast: fields.number("beta_fast", 1e-3, 1e6)?.unwrap_or(32.0),
        beta_slow: fields.number("beta_slow", 1e-3, 1e6)?.unwrap_or(1.0),
        original_context_len,
        attention_factor,
        is_truncated: fields.flag("truncate")?.unwrap_or(true),
    };
    Ok((scaling, beta.map(|beta| QueryScaling { beta, original_context_len })))
}

/// Whether queries and keys have YaRN's factor, for layouts that say no more of a YaRN scaling than this.
///
/// # Errors
/// When there is more to say: the ends of the ramp are not whole pairs, or the factor is neither YaRN's nor one.
pub(crate) fn has_yarn_magnitude(
    factor: f64,
    attention_factor: f64,
    is_truncated: bool,
) -> Result<bool, &'static str> {
    let has_magnitude = attention_factor == magnitude(factor, 1.0);
    if is_truncated && (has_magnitude || attention_factor == 1.0) {
        return Ok(has_magnitude);
    }
    Err("a YaRN ramp or attention factor of its own")
}

/// YaRN's factor of queries and keys: `1 + 0.1 scale ln(factor)`.
pub(crate) fn magnitude(factor: f64, scale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 }
}
