//! How an image came to be: the steps of its config, joined with its layers.

use serde::Serialize;

use crate::image::Image;

/// One step, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HistoryStep {
    /// When, RFC 3339, if the image says so.
    pub created: Option<String>,
    /// What was done, in the words of whoever did it.
    pub created_by: String,
    /// What they had to say about it.
    pub comment: String,
    /// The layer it made; nothing for a step that changed the config alone.
    pub layer: Option<String>,
    /// Bytes of the layer as it is stored.
    pub size_bytes: u64,
}

impl Image {
    /// The steps that made this image. Layers that no step tells of stand at the end, each for itself.
    pub fn history(&self) -> Vec<HistoryStep> {
        let mut layers = self.manifest().layers().iter();
        let mut steps = Vec::new();
        for step in self.configuration().history().iter().flatten() {
            let layer = if step.empty_layer() == Some(true) { None } else { layers.next() };
            steps.push(HistoryStep {
                created: step.created().clone(),
                created_by: step.created_by().clone().unwrap_or_default(),
                comment: step.comment().clone().unwrap_or_default(),
                layer: layer.map(|layer| layer.digest().to_string()),
                size_bytes: layer.map_or(0, |layer| layer.size()),
            });
        }
        steps.extend(layers.map(|layer| HistoryStep {
            created: None,
            created_by: String::new(),
            comment: String::new(),
            layer: Some(layer.digest().to_string()),
            size_bytes: layer.size(),
        }));
        steps
    }
}
