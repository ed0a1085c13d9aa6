//! What SQL databases share: quoting, and the difference between two table shapes.
