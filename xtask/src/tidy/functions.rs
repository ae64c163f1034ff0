//! Functions longer than a screen decide too much. Tables are fine: they have few statements however many
//! rows, and are listed with the reason.

use std::path::Path;

use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::visit::Visit;

use super::Complaint;

/// Lines a function may have, signature and braces included.
const LIMIT: usize = 70;

/// Longer functions that are right as they are: file, function, why.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("crates/engine_soft/src/x86/interp/select.rs", "integer", "a table: instruction to function"),
    (
        "crates/engine_soft/src/x86/interp/ops/system/select.rs",
        "segment_operation",
        "a table: instruction to function",
    ),
    (
        "crates/engine_soft/tests/differential/operands.rs",
        "operand",
        "a table: kind of operand to a way to make one",
    ),
];

/// How many functions the file has, and a complaint for each that is too long.
pub fn check(path: &Path, text: &str) -> (usize, Vec<Complaint>) {
    let file = match syn::parse_file(text) {
        Ok(file) => file,
        Err(error) => {
            return (0, vec![Complaint::line(path, error.span().start().line, format!("parse: {error}"))]);
        }
    };
    let mut visitor = Functions { path, seen: 0, complaints: Vec::new() };
    visitor.visit_file(&file);
    (visitor.seen, visitor.complaints)
}

struct Functions<'a> {
    path: &'a Path,
    seen: usize,
    complaints: Vec<Complaint>,
}

impl Functions<'_> {
    fn function(&mut self, name: &syn::Ident, from: Span, to: Span) {
        self.seen += 1;
        let lines = to.end().line + 1 - from.start().line;
        let excepted =
            EXCEPTIONS.iter().any(|(file, function, _)| Path::new(file) == self.path && name == function);
        if lines > LIMIT && !excepted {
            let text = format!("function {name} has {lines} lines, more than {LIMIT}");
            self.complaints.push(Complaint::line(self.path, from.start().line, text));
        }
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.sig.ident, item.sig.span(), item.block.span());
        syn::visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.sig.ident, item.sig.span(), item.block.span());
        syn::visit::visit_impl_item_fn(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_measured_without_its_documentation() {
        let body = "    let _ = 1;\n".repeat(LIMIT - 2);
        let fits = format!("/// Doc.\n/// Doc.\nfn fits() {{\n{body}}}\n");
        assert!(check(Path::new("a.rs"), &fits).1.is_empty());
        let long = format!("struct S;\nimpl S {{ fn long() {{\n\n{body}}} }}\n");
        assert_eq!(check(Path::new("a.rs"), &long).1.len(), 1);
    }
}
