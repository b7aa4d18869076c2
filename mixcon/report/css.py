"""The page's style sheet: system fonts, one column of sections, cards that fold on a phone, light and dark."""

from mixcon.report import style

INK, MUTED, GRID, PAPER, ACCENT, GOOD, BAD = (
    f"var({style.VARIABLES[c]})"
    for c in (style.INK, style.MUTED, style.GRID, style.PAPER, style.SERIES[0], style.GOOD, style.BAD)
)

CSS = style.css_variables() + f"""
:root{{color-scheme:light dark;--soft:#f6f7f9;--note:#fff6e5}}
@media(prefers-color-scheme:dark){{:root{{--soft:#1b2027;--note:#2e2617}}}}
*{{box-sizing:border-box}}
body{{margin:0;background:{PAPER};color:{INK};font:16px/1.55 ui-sans-serif,system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,"Noto Sans",sans-serif;-webkit-text-size-adjust:100%}}
main{{max-width:1120px;margin:0 auto;padding:40px 24px 64px}}
h1{{font-size:2rem;line-height:1.15;margin:0 0 6px;letter-spacing:-.02em;overflow-wrap:anywhere}}
h2{{font-size:1.25rem;margin:52px 0 4px;letter-spacing:-.01em}}
h3{{font-size:1rem;margin:0;overflow-wrap:anywhere}}
p{{margin:4px 0 0;max-width:70ch}}
.muted,figcaption p,h3 small,dt,th{{color:{MUTED};font-weight:400}}
h3 small{{display:block;font-size:.82rem}}
.state{{display:inline-block;font-size:.8rem;font-weight:600;padding:2px 10px;border-radius:99px;vertical-align:middle;
border:1px solid currentColor;margin-left:10px;letter-spacing:0;white-space:nowrap}}
.done{{color:{GOOD}}}.open{{color:{BAD}}}
dl.facts{{display:flex;flex-wrap:wrap;gap:10px 32px;margin:20px 0 0;padding:14px 0;border-block:1px solid {GRID}}}
dl.facts div{{min-width:0}}dt{{font-size:.8rem}}dd{{margin:0;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}}
.notes{{background:var(--note);border-radius:10px;padding:12px 18px;margin-top:20px;font-size:.94rem}}
.notes ul{{margin:2px 0 0;padding-left:1.1em}}
.cards,.curves,.pieces{{display:grid;gap:20px;margin-top:18px}}
.cards,.curves{{grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr))}}
.pieces{{grid-template-columns:repeat(2,minmax(0,1fr))}}.wide{{grid-column:1/-1}}
@media(min-width:960px){{.cards{{grid-template-columns:repeat(var(--columns),minmax(0,1fr))}}}}
.card,figure{{border:1px solid {GRID};border-radius:12px;padding:16px 18px;margin:0;min-width:0}}
figcaption{{font-size:.92rem}}
.score{{display:grid;grid-template-columns:3.9em 1fr auto;gap:0 12px;align-items:center;margin-top:12px;
font-variant-numeric:tabular-nums}}
.score b{{font-size:1.12rem;text-align:right}}.score small{{grid-column:1/4;color:{MUTED};text-align:right}}
.track{{position:relative;height:8px;border-radius:4px;background:{GRID}}}
.track i{{position:absolute;inset:0 auto 0 0;border-radius:4px;background:{ACCENT};min-width:2px}}
.track u{{position:absolute;top:-3px;bottom:-3px;width:2px;background:{INK};border-radius:1px}}
figure svg{{display:block;width:100%;height:auto;overflow:visible;margin-top:10px}}
figure svg text{{font-family:inherit!important}}
.embedding_map svg text,.histogram svg text{{paint-order:stroke;stroke:{PAPER};stroke-width:3px;stroke-linejoin:round}}
.pieces svg{{margin-inline:auto}}.wide:not(.embedding_map) svg{{max-width:640px}}
.scroll{{overflow-x:auto}}
table{{border-collapse:collapse;font-size:.92rem;margin-top:10px;font-variant-numeric:tabular-nums}}
th,td{{text-align:start;padding:5px 22px 5px 0;border-bottom:1px solid {GRID};vertical-align:top}}
td{{overflow-wrap:anywhere}}.num{{text-align:end}}td.key{{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.84rem}}
.grid{{margin-top:12px;display:grid;gap:0}}
.row{{display:grid;grid-template-columns:minmax(110px,1.15fr) 5fr minmax(84px,1fr);gap:20px;align-items:center;
padding:10px 0;border-top:1px solid {GRID}}}
.row.head{{border:0;padding:0;font-size:.8rem;color:{MUTED}}}
.results{{display:grid;grid-template-columns:repeat(var(--n),minmax(0,1fr));gap:10px;align-items:center}}
.row img{{display:block;width:72px;max-width:100%;height:auto;aspect-ratio:1;object-fit:contain;border-radius:8px;
background:#fff;padding:3px;border:1px solid {GRID}}}
.hit{{position:relative;color:{GOOD};font-weight:600}}
.row .hit img,.row img.hit{{border:3px solid {GOOD};padding:1px}}
.text{{font-size:.9rem;line-height:1.3;overflow-wrap:anywhere;hyphens:auto}}
.results .text:not(.hit){{color:{MUTED}}}
.query{{font-weight:600;font-size:.98rem}}.rank{{font-size:.78rem;font-weight:400;color:{MUTED};margin-top:3px}}
.bar{{display:flex;height:26px;border-radius:8px;overflow:hidden;margin-top:16px;gap:2px}}.bar i{{min-width:2px}}
.legend{{display:flex;flex-wrap:wrap;gap:6px 28px;margin:12px 0 0;padding:0;list-style:none;font-size:.92rem;
font-variant-numeric:tabular-nums}}
.legend i{{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:8px}}
details{{border-top:1px solid {GRID};padding:12px 0}}details:last-of-type{{border-bottom:1px solid {GRID}}}
summary{{cursor:pointer;font-weight:600}}
footer{{margin-top:40px;font-size:.85rem;color:{MUTED}}}
@media(max-width:640px){{
main{{padding:24px 16px 48px}}h1{{font-size:1.55rem}}h2{{margin-top:40px}}
.state{{margin:6px 0 0;display:table}}
.row{{grid-template-columns:minmax(84px,1fr) minmax(0,1.5fr);gap:10px 14px;padding:14px 0}}.row.head{{display:none}}
.results{{grid-column:1/3;grid-row:2;gap:8px}}.truth{{text-align:end}}.truth img{{margin-left:auto}}
.truth::before{{content:"truth";font-size:.75rem;color:{MUTED};display:block}}
.results.words{{grid-template-columns:1fr;gap:2px;counter-reset:place}}
.results.words .text::before{{counter-increment:place;content:counter(place) ". "}}
.embedding_map .scroll svg{{width:640px;max-width:none}}
.card,figure{{padding:14px}}.pieces{{grid-template-columns:minmax(0,1fr)}}
}}
@media print{{main{{max-width:none;padding:0}}figure,.card,.row{{break-inside:avoid}}details{{display:none}}}}
"""
