//! Puts checks of values and of texts into a template's program before it is compiled.
//!
//! The engine has no place for them, so its tree is built anew with filters at the places where values come to be or are
//! looked at. The tree is no deeper than [`MAX_NESTING`]: what follows may recurse over it.

use minijinja::machinery::Span;
use minijinja::machinery::ast::{self, CallArg, Expr, Spanned, Stmt};
use minijinja::{Error, ErrorKind};

/// Calls a filter by name: so all of them are paid for, and what they make is checked.
pub(super) const FILTER: &str = "filter!";
/// Checks that there is time left; the engine takes fuel for the text that it hands on.
pub(super) const TIMELY: &str = "timely!";
/// Checks that a value is of bounded size and depth, and makes lists of what is computed on demand.
pub(super) const BOUNDED: &str = "bounded!";
/// Checks that a value is data, and that the namespace which it goes to stays bounded.
pub(super) const MEMBER: &str = "member!";
/// A text as people read it, for comparing.
pub(super) const SHOWN: &str = "shown!";

/// Expressions and blocks within one another; published templates stay below 50.
const MAX_NESTING: usize = 400;

/// Methods of loops that keep or hand on what they are given; templates have no use for them.
const LOOP_METHODS: [&str; 2] = ["changed", "cycle"];

type Guarded<T> = Result<T, Error>;

/// The template with checks.
///
/// # Errors
/// When it is nested too deeply.
pub(super) fn guard<'a>(template: &Stmt<'a>) -> Guarded<Stmt<'a>> {
    stmt(template, 0)
}

fn again<T, U>(old: &Spanned<T>, new: U) -> Spanned<U> {
    Spanned::new(new, old.span())
}

fn enter(depth: usize, span: Option<Span>) -> Guarded<usize> {
    if depth < MAX_NESTING {
        return Ok(depth + 1);
    }
    let place = span.map(|span| format!(" (line {})", span.start_line)).unwrap_or_default();
    let problem =
        format!("more than {MAX_NESTING} expressions or blocks stand within one another{place}");
    Err(Error::new(ErrorKind::SyntaxError, problem))
}

fn unsupported<T>(what: &str, span: Span) -> Guarded<T> {
    let problem = format!("{what} is not supported (line {})", span.start_line);
    Err(Error::new(ErrorKind::SyntaxError, problem))
}

fn body<'a>(old: &[Stmt<'a>], depth: usize) -> Guarded<Vec<Stmt<'a>>> {
    old.iter().map(|node| stmt(node, depth)).collect()
}

fn stmt<'a>(old: &Stmt<'a>, depth: usize) -> Guarded<Stmt<'a>> {
    let depth = enter(depth, None)?;
    Ok(match old {
        Stmt::Template(node) => {
            let children = body(&node.children, depth)?;
            Stmt::Template(again(node, ast::Template { children }))
        }
        Stmt::EmitExpr(node) => {
            let expr = emitted(&node.expr, depth)?;
            Stmt::EmitExpr(again(node, ast::EmitExpr { expr }))
        }
        Stmt::EmitRaw(node) => Stmt::EmitRaw(again(node, ast::EmitRaw { raw: node.raw })),
        Stmt::ForLoop(node) => Stmt::ForLoop(again(node, for_loop(node, depth)?)),
        Stmt::IfCond(node) => {
            let expr = expr(&node.expr, depth)?;
            let (true_body, false_body) =
                (body(&node.true_body, depth)?, body(&node.false_body, depth)?);
            Stmt::IfCond(again(node, ast::IfCond { expr, true_body, false_body }))
        }
        Stmt::WithBlock(node) => {
            let assigned = node.assignments.iter();
            let assignments = assigned
                .map(|(to, value)| Ok((target(to, depth)?, expr(value, depth)?)))
                .collect::<Guarded<_>>()?;
            let body = body(&node.body, depth)?;
            Stmt::WithBlock(again(node, ast::WithBlock { assignments, body }))
        }
        Stmt::Set(node) => {
            let target = target(&node.target, depth)?;
            let mut value = expr(&node.expr, depth)?;
            if let Some(member) = member(&node.target)?
                && !matches!(value, Expr::Const(_))
            {
                value = filtered(MEMBER, Some(value), member, node.span());
            }
            Stmt::Set(again(node, ast::Set { target, expr: value }))
        }
        Stmt::SetBlock(node) => {
            let (target, body) = (target(&node.target, depth)?, body(&node.body, depth)?);
            let mut filter = option(&node.filter, depth)?;
            if let Some(member) = member(&node.target)? {
                filter = Some(filtered(MEMBER, filter, member, node.span()));
            }
            Stmt::SetBlock(again(node, ast::SetBlock { target, filter, body }))
        }
        Stmt::AutoEscape(node) => return unsupported("autoescape", node.span()),
        Stmt::FilterBlock(node) => {
            let (filter, body) = (expr(&node.filter, depth)?, body(&node.body, depth)?);
            let filter_span = node.filter_span;
            Stmt::FilterBlock(again(node, ast::FilterBlock { filter, filter_span, body }))
        }
        Stmt::Macro(node) => Stmt::Macro(again(node, macro_of(node, depth)?)),
        Stmt::CallBlock(node) => {
            let call = again(&node.call, call(&node.call, depth)?);
            let macro_decl = again(&node.macro_decl, macro_of(&node.macro_decl, depth)?);
            let call_expr_span = node.call_expr_span;
            Stmt::CallBlock(again(node, ast::CallBlock { call, call_expr_span, macro_decl }))
        }
        Stmt::Continue(node) => Stmt::Continue(again(node, ast::Continue)),
        Stmt::Break(node) => Stmt::Break(again(node, ast::Break)),
        Stmt::Do(node) => return unsupported("do", node.span()),
    })
}

/// A body that is run again and again looks at the time first.
fn timely_body<'a>(old: &[Stmt<'a>], depth: usize, span: Span) -> Guarded<Vec<Stmt<'a>>> {
    let expr = checked(TIMELY, text("", span));
    let mut statements = vec![Stmt::EmitExpr(Spanned::new(ast::EmitExpr { expr }, span))];
    statements.extend(body(old, depth)?);
    Ok(statements)
}

fn for_loop<'a>(old: &Spanned<ast::ForLoop<'a>>, depth: usize) -> Guarded<ast::ForLoop<'a>> {
    let filter_expr = option(&old.filter_expr, depth)?;
    Ok(ast::ForLoop {
        target: target(&old.target, depth)?,
        iter: checked(TIMELY, expr(&old.iter, depth)?),
        filter_expr: filter_expr.map(|value| checked(TIMELY, value)),
        recursive: old.recursive,
        body: timely_body(&old.body, depth, old.span())?,
        else_body: body(&old.else_body, depth)?,
    })
}

fn macro_of<'a>(old: &Spanned<ast::Macro<'a>>, depth: usize) -> Guarded<ast::Macro<'a>> {
    let args = old.args.iter().map(|arg| target(arg, depth)).collect::<Guarded<_>>()?;
    let defaults = old.defaults.iter().map(|value| expr(value, depth)).collect::<Guarded<_>>()?;
    let body = timely_body(&old.body, depth, old.span())?;
    Ok(ast::Macro { name: old.name, args, defaults, body })
}

/// What a `set` or a loop gives a value to: names, lists of them, attributes.
fn target<'a>(old: &Expr<'a>, depth: usize) -> Guarded<Expr<'a>> {
    let depth = enter(depth, Some(old.span()))?;
    match old {
        Expr::List(list) => {
            let items =
                list.items.iter().map(|item| target(item, depth)).collect::<Guarded<_>>()?;
            Ok(Expr::List(again(list, ast::List { items })))
        }
        other => expr(other, depth),
    }
}

fn are_names(target: &Expr<'_>) -> bool {
    match target {
        Expr::Var(_) => true,
        Expr::List(list) => list.items.iter().all(are_names),
        _ => false,
    }
}

/// The namespace and the name, where a `set` changes one: it holds data alone, so no value can come to hold itself.
fn member<'a>(target: &Expr<'a>) -> Guarded<Option<Vec<CallArg<'a>>>> {
    match target {
        names if are_names(names) => Ok(None),
        Expr::GetAttr(node) if let Expr::Var(namespace) = &node.expr => {
            let namespace = Expr::Var(again(namespace, ast::Var { id: namespace.id }));
            Ok(Some(vec![CallArg::Pos(namespace), CallArg::Pos(text(node.name, node.span()))]))
        }
        other => unsupported("setting an attribute in this way", other.span()),
    }
}

/// `{{ loop(..) }}` is compiled by its form.
fn emitted<'a>(old: &Expr<'a>, depth: usize) -> Guarded<Expr<'a>> {
    match old {
        Expr::Call(node) if matches!(&node.expr, Expr::Var(name) if name.id == "loop") => {
            Ok(Expr::Call(again(node, call(node, depth)?)))
        }
        other => expr(other, depth),
    }
}

fn option<'a>(old: &Option<Expr<'a>>, depth: usize) -> Guarded<Option<Expr<'a>>> {
    old.as_ref().map(|value| expr(value, depth)).transpose()
}

fn exprs<'a>(old: &[Expr<'a>], depth: usize) -> Guarded<Vec<Expr<'a>>> {
    old.iter().map(|item| expr(item, depth)).collect()
}

fn text<'a>(value: &str, span: Span) -> Expr<'a> {
    Expr::Const(Spanned::new(ast::Const { value: value.into() }, span))
}

fn filtered<'a>(
    name: &'static str,
    expr: Option<Expr<'a>>,
    args: Vec<CallArg<'a>>,
    span: Span,
) -> Expr<'a> {
    Expr::Filter(Spanned::new(ast::Filter { name, expr, args }, span))
}

fn checked<'a>(filter: &'static str, value: Expr<'a>) -> Expr<'a> {
    let span = value.span();
    filtered(filter, Some(value), Vec::new(), span)
}

fn is_constant(value: &Expr<'_>) -> bool {
    let are_constant = |items: &[Expr<'_>]| items.iter().all(|item| matches!(item, Expr::Const(_)));
    match value {
        Expr::Const(_) => true,
        Expr::List(list) => are_constant(&list.items),
        Expr::Tuple(tuple) => are_constant(&tuple.items),
        Expr::Map(map) => are_constant(&map.keys) && are_constant(&map.values),
        _ => false,
    }
}

fn is_name(key: &Expr<'_>) -> bool {
    matches!(key, Expr::Const(key) if key.value.as_str().is_some())
}

/// Whether an expression is a text or a number, if it is anything.
fn is_scalar(value: &Expr<'_>) -> bool {
    match value {
        Expr::Const(_) => true,
        Expr::BinOp(node) => match node.op {
            ast::BinOpKind::Add => is_scalar(&node.left) || is_scalar(&node.right),
            ast::BinOpKind::Concat | ast::BinOpKind::Sub | ast::BinOpKind::Div => true,
            _ => false,
        },
        _ => false,
    }
}

fn bounded_unless(is_fine: bool, value: Expr<'_>) -> Expr<'_> {
    if is_fine { value } else { checked(BOUNDED, value) }
}

fn timely<'a>(old: &Expr<'a>, depth: usize) -> Guarded<Expr<'a>> {
    Ok(checked(TIMELY, expr(old, depth)?))
}

fn shown<'a>(old: &Expr<'a>, depth: usize) -> Guarded<Expr<'a>> {
    let value = expr(old, depth)?;
    Ok(if is_constant(old) { value } else { checked(SHOWN, value) })
}

fn expr<'a>(old: &Expr<'a>, depth: usize) -> Guarded<Expr<'a>> {
    let depth = enter(depth, Some(old.span()))?;
    Ok(match old {
        Expr::Var(node) => Expr::Var(again(node, ast::Var { id: node.id })),
        Expr::Const(node) => Expr::Const(again(node, ast::Const { value: node.value.clone() })),
        Expr::Slice(node) => {
            let (value, start) = (timely(&node.expr, depth)?, option(&node.start, depth)?);
            let (stop, step) = (option(&node.stop, depth)?, option(&node.step, depth)?);
            let slice = ast::Slice { expr: value, start, stop, step };
            checked(BOUNDED, Expr::Slice(again(node, slice)))
        }
        Expr::UnaryOp(node) => {
            let is_not = matches!(node.op, ast::UnaryOpKind::Not);
            let op = if is_not { ast::UnaryOpKind::Not } else { ast::UnaryOpKind::Neg };
            Expr::UnaryOp(again(node, ast::UnaryOp { op, expr: expr(&node.expr, depth)? }))
        }
        Expr::BinOp(node) => binary(node, depth)?,
        Expr::Compare(node) => {
            let ops = node.ops.iter();
            let ops = ops
                .map(|next| Ok(ast::CompareOp { op: next.op, expr: shown(&next.expr, depth)? }))
                .collect::<Guarded<_>>()?;
            Expr::Compare(again(node, ast::Compare { expr: shown(&node.expr, depth)?, ops }))
        }
        Expr::IfExpr(node) => {
            let (test_expr, true_expr) =
                (expr(&node.test_expr, depth)?, expr(&node.true_expr, depth)?);
            let false_expr = option(&node.false_expr, depth)?;
            Expr::IfExpr(again(node, ast::IfExpr { test_expr, true_expr, false_expr }))
        }
        Expr::Filter(node) => {
            let mut all = vec![CallArg::Pos(text(node.name, node.span()))];
            all.extend(args(&node.args, depth)?);
            filtered(FILTER, option(&node.expr, depth)?, all, node.span())
        }
        Expr::Test(node) => {
            let (value, args) = (expr(&node.expr, depth)?, args(&node.args, depth)?);
            Expr::Test(again(node, ast::Test { name: node.name, expr: value, args }))
        }
        Expr::GetAttr(node) => {
            let value = expr(&node.expr, depth)?;
            Expr::GetAttr(again(node, ast::GetAttr { expr: value, name: node.name }))
        }
        Expr::GetItem(node) => {
            // A text is gone through for a place in it.
            let value = if is_name(&node.subscript_expr) { expr } else { timely };
            let value = value(&node.expr, depth)?;
            let key = shown(&node.subscript_expr, depth)?;
            Expr::GetItem(again(node, ast::GetItem { expr: value, subscript_expr: key }))
        }
        Expr::Call(node) => {
            // What methods make is checked where they are.
            let is_method = matches!(node.expr, Expr::GetAttr(_));
            bounded_unless(is_method, Expr::Call(again(node, call(node, depth)?)))
        }
        Expr::List(_) | Expr::Tuple(_) | Expr::Map(_) => {
            bounded_unless(is_constant(old), container(old, depth)?)
        }
    })
}

fn container<'a>(old: &Expr<'a>, depth: usize) -> Guarded<Expr<'a>> {
    Ok(match old {
        Expr::List(node) => {
            Expr::List(again(node, ast::List { items: exprs(&node.items, depth)? }))
        }
        Expr::Tuple(node) => {
            Expr::Tuple(again(node, ast::Tuple { items: exprs(&node.items, depth)? }))
        }
        Expr::Map(node) => {
            let (keys, values) = (exprs(&node.keys, depth)?, exprs(&node.values, depth)?);
            Expr::Map(again(node, ast::Map { keys, values }))
        }
        other => expr(other, depth)?,
    })
}

fn binary<'a>(node: &Spanned<ast::BinOp<'a>>, depth: usize) -> Guarded<Expr<'a>> {
    use ast::BinOpKind::{Add, Eq, Gt, Gte, In, Lt, Lte, Mul, Ne};
    let is_compared = matches!(node.op, Eq | Ne | Lt | Lte | Gt | Gte | In);
    let side = if is_compared { shown } else { expr };
    let (left, right) = (side(&node.left, depth)?, side(&node.right, depth)?);
    let is_fine = match node.op {
        Add => is_scalar(&node.left) || is_scalar(&node.right),
        Mul => false,
        _ => true,
    };
    let op = again(node, ast::BinOp { op: node.op, left, right });
    Ok(bounded_unless(is_fine, Expr::BinOp(op)))
}

fn call<'a>(old: &Spanned<ast::Call<'a>>, depth: usize) -> Guarded<ast::Call<'a>> {
    if let Expr::GetAttr(method) = &old.expr
        && LOOP_METHODS.contains(&method.name)
    {
        return unsupported(&format!("the method {}", method.name), old.span());
    }
    Ok(ast::Call { expr: expr(&old.expr, depth)?, args: args(&old.args, depth)? })
}

fn args<'a>(old: &[CallArg<'a>], depth: usize) -> Guarded<Vec<CallArg<'a>>> {
    let arg = |arg: &CallArg<'a>| {
        Ok(match arg {
            CallArg::Pos(value) => CallArg::Pos(expr(value, depth)?),
            CallArg::Kwarg(name, value) => CallArg::Kwarg(name, expr(value, depth)?),
            CallArg::PosSplat(value) => CallArg::PosSplat(expr(value, depth)?),
            CallArg::KwargSplat(value) => CallArg::KwargSplat(expr(value, depth)?),
        })
    };
    old.iter().map(arg).collect()
}
