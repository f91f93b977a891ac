#include "eval/report_style.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>

namespace thinkvg::eval {
namespace {

// Reference (amber, dashed) and prediction (sky blue, solid) are a pair of Okabe and Ito's palette that people with any
// colour vision tell apart, on a dark radiograph as on a page.
constexpr const char* kStyle = R"css(
:root{color-scheme:light dark;--bg:#fff;--fg:#1b2430;--muted:#5a6675;--faint:#8a95a3;--line:#dde3ea;--card:#f6f8fa;
--accent:#2457a6;--ref:#e69f00;--pred:#2f9fe0;--ref-tint:#e69f0033;--pred-tint:#2f9fe02b;--right:#17694c;--wrong:#a63d1f;
--right-tint:#17694c17;--wrong-tint:#a63d1f17;--edge:#1b243040}
@media screen and (prefers-color-scheme:dark){:root{--bg:#11151a;--fg:#e3e8ee;--muted:#9aa6b4;--faint:#748090;
--line:#2a323c;--card:#181e25;--accent:#7fb0f2;--ref:#f0b429;--pred:#56b4e9;--ref-tint:#f0b42933;--pred-tint:#56b4e933;
--right:#63c79f;--wrong:#f0906f;--right-tint:#63c79f1c;--wrong-tint:#f0906f1c;--edge:#000000b0}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",
"Liberation Sans",Arial,sans-serif;-webkit-text-size-adjust:100%}
main,header,footer{max-width:1180px;margin:0 auto;padding:0 20px}
header{padding-top:36px}
h1{font-size:28px;line-height:1.2;letter-spacing:-.01em;margin:0 0 8px;font-weight:650}
h2{font-size:20px;line-height:1.3;margin:48px 0 6px;padding-top:14px;border-top:1px solid var(--line);font-weight:650}
h3{font-size:15px;margin:24px 0 6px;font-weight:650}
h4{font-size:13px;margin:0;font-weight:600}
p{margin:6px 0 12px;max-width:92ch}
.lead{font-size:16px}
.note,.muted,figcaption,small{color:var(--muted)}
.note{font-size:13px}
a{color:var(--accent)}
code,pre{font:12px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--card);border:1px solid var(--line);border-radius:6px;
padding:10px 12px;margin:8px 0;max-height:26em;overflow:auto}
.facts{display:flex;flex-wrap:wrap;gap:4px 28px;margin:14px 0 0;font-size:13px}
.facts div{display:flex;gap:8px}
.facts dt{color:var(--muted)}
.facts dd{margin:0}
nav{font-size:13px;margin-top:14px;display:flex;flex-wrap:wrap;gap:4px 16px}
.scroll{overflow-x:auto;margin:10px 0 6px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:7px 12px;text-align:right;vertical-align:top;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:600;font-size:13px;color:var(--muted);vertical-align:bottom}
tbody th{color:var(--fg);font-size:14px;vertical-align:top}
th:first-child,td:first-child{text-align:left;padding-left:2px}
td.wide,th.wide{white-space:normal;min-width:11em}
tbody tr:last-child th,tbody tr:last-child td{border-bottom-color:var(--faint)}
thead th{border-bottom-color:var(--faint)}
tr.total th,tr.total td{font-weight:650}
.compact th,.compact td{padding:6px 7px}
.compact th{white-space:normal}
.compact thead .swatch{display:block;margin:0 0 4px auto}
.ci{display:block;color:var(--muted);font-size:12px;font-weight:400}
.swatch{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:7px}
.stage-note{display:block;color:var(--muted);font-size:12px;font-weight:400;white-space:normal;max-width:34em}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px;margin:10px 0 4px}
.legend span{white-space:nowrap}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:12px 28px;margin-top:8px}
.curves{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));gap:18px 24px;margin:10px 0}
figure{margin:0;min-width:0;break-inside:avoid}
figcaption{font-size:13px;margin-bottom:2px;display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 12px}
figcaption b{color:var(--fg);font-weight:600}
figcaption span{font-variant-numeric:tabular-nums;white-space:nowrap}
svg.chart{width:100%;height:auto;display:block;overflow:visible}
svg.diff{width:120px;height:18px;vertical-align:middle;margin-left:6px}
.axis{stroke:var(--faint);stroke-width:1}
.grid{stroke:var(--line);stroke-width:1}
.tick{fill:var(--muted);font-size:11px;font-variant-numeric:tabular-nums}
.group{fill:var(--fg);font-size:13px}
.whisker{stroke:var(--fg);stroke-width:1.3;fill:none}
.raw{fill:none;stroke:var(--accent);stroke-width:1;stroke-opacity:.28}
.smooth{fill:none;stroke:var(--accent);stroke-width:1.8;stroke-linejoin:round}
.dot{fill:var(--accent)}
.diagonal{stroke-dasharray:3 4}
.spot{fill-opacity:.75;stroke:var(--bg);stroke-width:1}
tr.baseline th,tr.baseline td{color:var(--muted);font-weight:400}
tr.baseline th{font-style:italic}
tr.group th{padding-top:16px;color:var(--muted);font-size:12px;font-weight:600;border-bottom-color:var(--faint)}
.strong{font-weight:650}
.small{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,250px),1fr));gap:16px 24px;margin:10px 0}
.matrix{width:auto;font-size:12.5px}
.matrix th,.matrix td{padding:4px 7px;border:0;text-align:right}
.matrix thead th{font-size:11.5px;font-weight:500;vertical-align:bottom;white-space:normal;max-width:9em}
.matrix tbody th{font-size:12.5px;font-weight:500;text-align:left;padding-left:0}
.matrix td{min-width:2.9em;border-radius:3px;border:1px solid var(--bg);background:color-mix(in srgb,var(--heat) calc(var(--v)*70%),transparent);background-clip:padding-box}
.matrix.many thead th{min-width:6.4em}
.matrix tbody tr:last-child th,.matrix tbody tr:last-child td{border-bottom:1px solid var(--bg)}
.matrix td.same{--heat:var(--pred)}
.matrix td{--heat:var(--ref)}
.matrix td.none{color:var(--faint)}
.canvas{fill:#0d1014}
.copy{user-select:all}
details{margin:8px 0}
summary{cursor:pointer;color:var(--accent);font-size:13px}
.key{display:inline-block;width:26px;height:0;margin-right:7px;vertical-align:4px;border-top:3px solid var(--pred)}
.key.ref{border-top:3px dashed var(--ref)}
.filters{display:flex;flex-wrap:wrap;gap:8px 16px;align-items:center;font-size:13px;margin:12px 0;padding:8px 0}
.filters select{font:inherit;padding:4px 6px;border:1px solid var(--line);border-radius:6px;background:var(--bg);
color:var(--fg)}
.filters input{font:inherit;width:4.6em;padding:3px 6px;border:1px solid var(--line);border-radius:6px;background:var(--bg);
color:var(--fg)}
.filters label{display:flex;gap:6px;align-items:center;max-width:100%}
.filters select{min-width:0;max-width:16em}
.filters output{color:var(--muted);margin-left:auto}
.case{border:1px solid var(--line);border-radius:10px;margin:0 0 20px;overflow:hidden;break-inside:avoid-page}
.case[hidden]{display:none}
.ask{padding:14px 18px;background:var(--card);border-bottom:1px solid var(--line)}
.ask .tags{display:flex;flex-wrap:wrap;gap:6px 10px;align-items:baseline;font-size:12px;color:var(--muted)}
.type{font-weight:600;color:var(--fg)}
.question{font-size:16px;font-weight:600;margin:4px 0 6px;max-width:90ch;overflow-wrap:anywhere}
.choices{list-style:none;margin:0 0 8px;padding:0;display:flex;flex-wrap:wrap;gap:2px 22px;font-size:14px}
.choices .is-answer{font-weight:650}
.gold{font-size:14px;margin:0;max-width:none}
.label{color:var(--muted);font-size:12px;margin-right:8px}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,240px),1fr))}
.panel{padding:14px 18px 16px;min-width:0;container-type:inline-size}
.panel+.panel{border-left:1px solid var(--line)}
.panel-head{display:flex;flex-wrap:wrap;align-items:baseline;align-content:flex-start;gap:4px 10px;margin-bottom:10px;
min-height:44px}
.verdict{font-size:12px;font-weight:650;border-radius:4px;padding:1px 7px}
.verdict.right{color:var(--right);background:var(--right-tint)}
.verdict.wrong{color:var(--wrong);background:var(--wrong-tint)}
.score{font-size:12px;color:var(--muted);font-variant-numeric:tabular-nums;margin-left:auto}
.picture{display:block;width:100%;max-width:420px;height:auto;background:#000;border-radius:4px;margin:0 auto 12px}
.picture rect{fill:transparent;vector-effect:non-scaling-stroke;pointer-events:all;transition:opacity .12s,fill .12s}
.picture .halo{stroke:#000;stroke-opacity:.55;stroke-width:4.5;pointer-events:none}
.picture .ref{stroke:#f0b429;stroke-width:2;stroke-dasharray:7 5}
.picture .pred{stroke:#56b4e9;stroke-width:2}
.picture .step{opacity:0;pointer-events:none;stroke:#56b4e9;stroke-width:2}
.picture .gold-step{opacity:0;pointer-events:none;stroke:#f0b429;stroke-width:2;stroke-dasharray:7 5}
.picture .on{opacity:1;stroke-width:3.5}
.picture .pred.on,.picture .step.on{fill:#56b4e940}
.picture .ref.on,.picture .gold-step.on{fill:#f0b42940}
.case.pointing .picture rect:not(.on){opacity:.22}
.case.pointing .picture .step:not(.on),.case.pointing .picture .gold-step:not(.on){opacity:0}
.said{font-size:15px;margin:0 0 8px;overflow-wrap:anywhere}
.said b{font-weight:650}
.boxes{list-style:none;margin:0 0 10px;padding:0;font-size:13px}
.boxes li{padding:1px 0}
.boxes .iou{color:var(--muted);font-variant-numeric:tabular-nums}
.think{font-size:13.5px;line-height:1.55;margin:0;white-space:pre-line;overflow-wrap:anywhere;max-width:none}
mark{color:inherit;background:var(--pred-tint);border-bottom:2px solid var(--pred);border-radius:2px;padding:0 1px;cursor:default}
mark.ref{background:var(--ref-tint);border-bottom:2px dashed var(--ref)}
mark.on,mark:focus{outline:2px solid currentColor;outline-offset:1px}
mark .at{color:var(--muted);font-size:.85em;font-variant-numeric:tabular-nums}
.rewards{font-size:12.5px;margin:0 0 8px;color:var(--muted);font-variant-numeric:tabular-nums;display:flex;flex-wrap:wrap;
gap:1px 10px}
.rewards .label{margin:0}
.rewards b{color:var(--fg)}
.rewards span[title]{text-decoration:underline dotted var(--faint);text-underline-offset:3px}
.warnings{list-style:none;margin:10px 0 16px;padding:0;font-size:14px;max-width:96ch}
.warnings li{border-left:3px solid var(--wrong);background:var(--wrong-tint);border-radius:0 6px 6px 0;padding:7px 12px;
margin:0 0 8px}
.warnings b{margin-right:9px;white-space:nowrap}
h4.part{font-size:15px;font-weight:650;margin:26px 0 6px}
.problem{font-size:13px;color:var(--wrong);margin:0 0 8px}
.kv{display:grid;grid-template-columns:max-content 1fr;gap:3px 16px;font-size:13px;margin:8px 0}
.kv dt{color:var(--muted)}
.kv dd{margin:0;overflow-wrap:anywhere}
footer{padding-top:24px;padding-bottom:40px;color:var(--muted);font-size:12px}
@container (min-width:460px){.panel-body{display:grid;grid-template-columns:minmax(0,min(54%,420px)) minmax(0,1fr);
gap:0 20px;align-items:start}
.picture{margin:0}}
@media (max-width:640px){svg.diff,#metrics .stage-note{display:none}#metrics th.wide{min-width:7.4em}td.wide,th.wide{min-width:8em}main,header,footer{padding-left:14px;padding-right:14px}
header{padding-top:22px}h1{font-size:23px}h2{margin-top:36px}th,td{padding:6px 8px}
.scroll th:first-child{position:sticky;left:0;background:var(--bg);z-index:1}
.scroll th.wide:first-child{max-width:8.5em;overflow-wrap:break-word}
.compact thead th:first-child{white-space:nowrap}
.scroll tr.group th:first-child{position:static}
.scroll{background:linear-gradient(to left,var(--bg) 40%,transparent) right/44px 100% no-repeat local,
linear-gradient(to left,var(--edge),transparent) right/16px 100% no-repeat scroll}
.differences th,.differences td{padding:6px}
.pair.charts .tick{font-size:15px}.pair.charts .group{font-size:14px}
.panel-head{min-height:0}
.panel,.ask{padding-left:14px;padding-right:14px}.panel+.panel{border-left:0;border-top:1px solid var(--line)}}
@media print{body{font-size:10.5pt}main,header,footer{max-width:none;padding:0}.filters,nav{display:none}
.scroll{overflow:visible}.case{break-inside:avoid}.picture{max-width:165px}.think,.said,.boxes{font-size:8.5pt}.question{font-size:11pt}
.pair.charts{grid-template-columns:1fr 1fr}.ask,.panel{padding:8px 12px}h2,h3,.note,.legend{break-after:avoid}
pre{max-height:none}tr,table.matrix{break-inside:avoid}.small{grid-template-columns:repeat(auto-fill,minmax(200px,1fr))}
.matrix.many,.matrix.many th{font-size:7pt}.matrix.many thead th{min-width:0}
.matrix.many th,.matrix.many td{padding:3px}.matrix.many td{min-width:2.4em}details:not([open]){display:none}
.swatch,.picture,mark,.verdict,.matrix td,svg rect,svg circle{-webkit-print-color-adjust:exact;print-color-adjust:exact}
.panels{grid-template-columns:repeat(auto-fit,minmax(150px,1fr))}}
)css";

constexpr const char* kScript = R"js(
(function(){
  var cases=[].slice.call(document.querySelectorAll('.case'));
  cases.forEach(function(box){
    function point(name,on){
      box.querySelectorAll('[data-r="'+name+'"]').forEach(function(e){e.classList.toggle('on',on);});
      box.classList.toggle('pointing',on);
    }
    box.querySelectorAll('mark[data-r],rect[data-r]').forEach(function(e){
      var name=e.getAttribute('data-r');
      ['mouseenter','focus'].forEach(function(k){e.addEventListener(k,function(){point(name,true);});});
      ['mouseleave','blur'].forEach(function(k){e.addEventListener(k,function(){point(name,false);});});
    });
  });
  // What the figures mean must be on paper, too.
  addEventListener('beforeprint',function(){
    document.querySelectorAll('details.rules:not([open])').forEach(function(e){e.open=e.wasClosed=true;});
  });
  addEventListener('afterprint',function(){
    document.querySelectorAll('details.rules').forEach(function(e){if(e.wasClosed)e.open=e.wasClosed=false;});
  });
  var row=document.querySelector('.filters');
  if(!row)return;
  cases=[].slice.call(document.querySelectorAll('#cases .case'));
  row.hidden=false;
  function field(name){return row.querySelector('[name='+name+']');}
  var type=field('type'),content=field('content'),run=field('run'),verdict=field('verdict'),low=field('low'),
      high=field('high'),other=field('other'),count=row.querySelector('output');
  function overlap(box,i){var v=(box.dataset.iou||'').split(',')[i];return v===''||v===undefined?null:+v;}
  function apply(){
    var shown=0,i=+run.value;
    cases.forEach(function(box){
      var right=box.dataset.right,mine=overlap(box,i),ok=(!type.value||box.dataset.type===type.value)&&
        (!content||!content.value||box.dataset.content===content.value)&&
        (!verdict.value||right[i]===verdict.value);
      var from=+low.value,to=+high.value;
      if(from>0||to<1)ok=ok&&mine!==null&&mine>=from&&mine<=to;
      if(other&&other.value!==''){
        var j=+other.value,theirs=overlap(box,j);
        ok=ok&&(right[i]!==right[j]||(mine!==null&&theirs!==null&&Math.abs(mine-theirs)>=0.25));
      }
      box.hidden=!ok;
      if(ok)shown++;
    });
    count.textContent=shown+' of '+cases.length+' shown';
  }
  [type,content,run,verdict,other].forEach(function(e){if(e)e.addEventListener('change',apply);});
  [low,high].forEach(function(e){e.addEventListener('input',apply);});
  apply();
})();
)js";

using Colour = std::array<int, 3>;

std::string mix(const Colour& from, const Colour& to, double share) {
  std::string out = "#";
  for (std::size_t i = 0; i < 3; ++i)
    out += fmt::format("{:02x}", static_cast<int>(from[i] + (to[i] - from[i]) * share + 0.5));
  return out;
}

std::string series_colours(int num_series, const Colour& first, const Colour& last) {
  std::string out;
  for (int i = 0; i < num_series; ++i) {
    const std::string colour = mix(first, last, num_series == 1 ? 1.0 : static_cast<double>(i) / (num_series - 1));
    out += fmt::format(".s{0}{{fill:{1};background:{1}}}\n", i, colour);
  }
  return out;
}

}  // namespace

std::string report_style(int num_series) {
  return std::string(kStyle) + series_colours(num_series, {198, 208, 220}, {28, 74, 148}) +
         "@media screen and (prefers-color-scheme:dark){\n" +
         series_colours(num_series, {66, 78, 94}, {138, 186, 250}) + "}\n";
}

const char* report_script() { return kScript; }

}  // namespace thinkvg::eval
