//! Documents as tokens, in memory.

/// The tokens of many documents in one block.
///
/// Memory: 2 bytes per token when every id is below 65,536, else 4; 8 bytes per document.
#[derive(Clone, Debug)]
pub struct TokenDocuments {
    tokens: Tokens,
    /// Where each document begins, and the end of the last: `[n_documents + 1]`, ascending from 0.
    offsets: Vec<u64>,
}

#[derive(Clone, Debug)]
enum Tokens {
    U16(Vec<u16>),
    U32(Vec<u32>),
}

impl TokenDocuments {
    /// Gathers documents; ids are stored in 16 bits when all fit.
    pub fn collect<D: AsRef<[u32]>>(documents: impl IntoIterator<Item = D>) -> Self {
        let mut tokens = Vec::new();
        let mut offsets = vec![0];
        for document in documents {
            tokens.extend_from_slice(document.as_ref());
            offsets.push(tokens.len() as u64);
        }
        if tokens.iter().any(|&id| id > u32::from(u16::MAX)) {
            return Self::from_u32(tokens, offsets);
        }
        // No id is cut: all are at most `u16::MAX`.
        Self::from_u16(tokens.into_iter().map(|id| id as u16).collect(), offsets)
    }

    pub(super) fn from_u16(tokens: Vec<u16>, offsets: Vec<u64>) -> Self {
        Self { tokens: Tokens::U16(tokens), offsets }
    }

    pub(super) fn from_u32(tokens: Vec<u32>, offsets: Vec<u64>) -> Self {
        Self { tokens: Tokens::U32(tokens), offsets }
    }

    pub(super) fn largest_id(&self) -> Option<u32> {
        match &self.tokens {
            Tokens::U16(tokens) => tokens.iter().max().map(|&id| u32::from(id)),
            Tokens::U32(tokens) => tokens.iter().max().copied(),
        }
    }

    /// Number of documents.
    #[must_use]
    pub fn n_documents(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Tokens of all documents.
    #[must_use]
    pub fn n_tokens(&self) -> u64 {
        self.offsets[self.n_documents()]
    }

    /// Tokens of one document.
    ///
    /// # Panics
    /// When there is no such document.
    #[must_use]
    pub fn document_len(&self, document_idx: usize) -> u64 {
        self.offsets[document_idx + 1] - self.offsets[document_idx]
    }

    /// Appends the tokens `begin..end` of one document to `out`.
    ///
    /// # Panics
    /// When the range is not inside the document.
    pub fn extend_from_document(
        &self,
        document_idx: usize,
        range: std::ops::Range<u64>,
        out: &mut Vec<u32>,
    ) {
        let n_tokens = self.document_len(document_idx);
        assert!(
            range.start <= range.end && range.end <= n_tokens,
            "tokens {range:?} of document {document_idx}, which has {n_tokens}"
        );
        let start = self.offsets[document_idx];
        // The offsets index tokens in memory, so they fit.
        let range = (start + range.start) as usize..(start + range.end) as usize;
        match &self.tokens {
            Tokens::U16(tokens) => out.extend(tokens[range].iter().map(|&id| u32::from(id))),
            Tokens::U32(tokens) => out.extend_from_slice(&tokens[range]),
        }
    }

    /// The tokens of one document.
    ///
    /// # Panics
    /// When there is no such document.
    #[must_use]
    pub fn document(&self, document_idx: usize) -> Vec<u32> {
        let mut tokens = Vec::new();
        self.extend_from_document(document_idx, 0..self.document_len(document_idx), &mut tokens);
        tokens
    }
}
