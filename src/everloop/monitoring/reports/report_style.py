"""The style sheet of reports: light and dark, narrow and wide, and for print."""

STYLE = """
:root{color-scheme:light dark;--paper:#fbfbfa;--card:#fff;--ink:#1c2733;--faint:#5d6a76;--line:#e1e5e8;
  --before:#c9d2da;--now:#2f6db0;--alarm:#b3392b;--warn:#b27a12;--ok:#2c7a4b;--chip:#eef2f5;--alarm-bg:#fdf0ee;
  --warn-bg:#fdf6e6;--ok-bg:#edf7f0}
@media(prefers-color-scheme:dark){:root{--paper:#14181c;--card:#1c2227;--ink:#e4e8eb;--faint:#9aa6b0;--line:#2e363d;
  --before:#46525d;--now:#7db1ea;--alarm:#f0887b;--warn:#e0b458;--ok:#74c794;--chip:#28313a;--alarm-bg:#35201e;
  --warn-bg:#322a18;--ok-bg:#1a2c21}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",sans-serif}
main{max-width:1180px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:26px;margin:0 0 2px;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:18px;margin:40px 0 12px}
h3{margin:0;font-size:15px;overflow-wrap:anywhere}
p{margin:0 0 8px}
.faint{color:var(--faint);font-size:13px}
.sub{overflow-wrap:anywhere}
.answer{margin:20px 0 0;padding:16px 18px;border-radius:10px;border-left:5px solid;font-size:18px;line-height:1.45;
  overflow-wrap:anywhere}
.answer b{display:block;font-size:13px;letter-spacing:.02em;margin-bottom:2px}
.answer.alarm{border-color:var(--alarm);background:var(--alarm-bg)}
.alarm b,.chip.alarm{color:var(--alarm)}
.answer.warn{border-color:var(--warn);background:var(--warn-bg)}
.warn b,.chip.warn{color:var(--warn)}
.answer.ok{border-color:var(--ok);background:var(--ok-bg)}
.ok b{color:var(--ok)}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:10px;margin:16px 0 0}
.fact,.card,.box{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px 14px}
.fact dt{color:var(--faint);font-size:12px}
.fact dd{margin:0;font-size:17px;font-weight:600;font-variant-numeric:tabular-nums}
.fact{display:flex;flex-direction:column-reverse;justify-content:flex-end}
.chip{background:var(--chip);border-radius:10px;padding:1px 9px;font-size:12px;font-weight:600;white-space:nowrap}
.incident{margin-bottom:10px}
.incident h3{font-size:16px;margin:6px 0 4px}
.incident.over{opacity:.75}
.when{position:relative;height:6px;border-radius:3px;background:var(--chip);margin:10px 0 2px}
.when i{position:absolute;top:0;bottom:0;min-width:4px;border-radius:3px;background:var(--warn)}
.alarm .when i{background:var(--alarm)}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));gap:12px}
.card header{display:flex;justify-content:space-between;gap:8px;align-items:baseline;margin-bottom:8px}
.card dl{display:grid;grid-template-columns:repeat(3,1fr);gap:4px 10px;margin:10px 0 0}
.card dl div{min-width:0}
.card dt{color:var(--faint);font-size:11.5px}
.card dd{margin:0;font-size:12.5px;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.st{margin-top:8px}
svg{display:block;width:100%;height:60px}
svg.st{height:20px}
svg.metric{height:170px}
svg path{vector-effect:non-scaling-stroke;fill:none}
.b{fill:var(--before)!important}
.n{stroke:var(--now);stroke-width:1.8}
.q,.w,.a{stroke:var(--before);stroke-width:calc(var(--w)*1.2px)}
.w{stroke:var(--warn)}
.a{stroke:var(--alarm)}
.l{stroke:var(--faint);stroke-width:1;stroke-dasharray:3 3}
.band{fill:var(--before)!important;opacity:.45}
.known{stroke:var(--faint);stroke-width:1;stroke-dasharray:4 3}
.line{stroke:var(--now);stroke-width:1.8}
.estimate{stroke:var(--warn);stroke-width:1.8;stroke-dasharray:5 4}
.whisker{stroke:var(--now);stroke-width:1;opacity:.55}
.dot{stroke:var(--now);stroke-width:6;stroke-linecap:round}
.dot.a{stroke:var(--alarm);stroke-width:8}
.ax{display:flex;justify-content:space-between;font-size:11px;color:var(--faint);margin:1px 0 0;gap:8px}
.chart{display:grid;grid-template-columns:auto 1fr;gap:2px 10px}
.chart .y{display:flex;flex-direction:column;justify-content:space-between;text-align:right;font-size:11.5px;
  color:var(--faint);font-variant-numeric:tabular-nums}
.chart .ax{grid-column:2}
.cat div{display:grid;grid-template-columns:7.5em 1fr 5.8em;gap:8px;align-items:center;font-size:12px;
  line-height:1.55}
.cat span{white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.cat span:last-child{text-align:right;color:var(--faint);font-variant-numeric:tabular-nums}
.cat i{height:11px;border-radius:2px;
  background-image:linear-gradient(var(--now),var(--now)),linear-gradient(var(--before),var(--before));
  background-position:0 50%,0 0;background-size:var(--n) 5px,var(--b) 100%;background-repeat:no-repeat}
.legend{display:flex;gap:6px 18px;flex-wrap:wrap;font-size:12.5px;color:var(--faint);margin:0 0 12px}
.legend i{display:inline-block;width:14px;height:10px;border-radius:2px;margin-right:6px}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13px}
th{text-align:left;font-weight:600;color:var(--faint);font-size:12px}
th,td{padding:4px 10px 4px 0;border-bottom:1px solid var(--line);vertical-align:middle}
td.r,th.r{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td:first-child{overflow-wrap:anywhere;min-width:9em}
td .st{margin:0;min-width:90px}
tr.alarm td:nth-child(2){color:var(--alarm);font-weight:600}
tr.warning td:nth-child(2){color:var(--warn);font-weight:600}
ul.notes{list-style:none;margin:0;padding:0}
ul.notes li{padding:7px 0;border-top:1px solid var(--line);overflow-wrap:anywhere}
ul.notes li:first-child{border-top:0}
summary{cursor:pointer;color:var(--faint);font-size:13px}
details{margin-top:10px}
footer{margin-top:44px;color:var(--faint);font-size:12.5px}
footer p{max-width:75ch}
@media print{.card,.incident{break-inside:avoid}
body{background:#fff}}
@media(max-width:520px){main{padding:20px 14px 48px}
h1{font-size:21px}
.answer{font-size:16px}
.cat div{grid-template-columns:6em 1fr 5.4em}}
"""
