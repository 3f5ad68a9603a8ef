#include "runtime/report/page_data.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "kernels/core/error.h"
#include "runtime/report/report_page.h"

namespace tessera {
namespace {

RunRecord long_run(int64_t steps) {
  RunRecord run;
  run.directory = "runs/<script>alert(1)</script>";
  for (int64_t step = 1; step <= steps; ++step) {
    run.steps.steps.push_back(step);
    run.steps.stages.emplace_back(2 * step <= steps ? "dense" : "tuning");
    const auto x = static_cast<double>(step);
    for (int column = 0; column < 8; ++column) {
      run.steps.columns[concat("column_", column)].push_back(std::sin(x * (column + 1.1)));
    }
    run.steps.columns["loss"].push_back(step == 7 ? std::nan("") : 100 + x);
    run.steps.columns["tokens"].push_back(4096 * x);
    run.steps.columns["ms"].push_back(360);
    run.steps.columns["validation_loss"].push_back(step % 10 == 0 ? x : std::nan(""));
  }
  run.steps.planned_steps = steps;
  run.config = "</script><b>&\xff";
  return run;
}

TEST(PageData, ShortRunsAreWhole) {
  const auto data = nlohmann::json::parse(page_data(long_run(20)));
  EXPECT_EQ(data["curves"]["x"]["step"].size(), 20u);
  EXPECT_EQ(data["curves"]["x"]["tokens"][19], 81920);
  EXPECT_NEAR(data["curves"]["x"]["hours"][9].get<double>(), 0.001, 1e-9);
  const auto& loss = data["curves"]["columns"]["loss"];
  EXPECT_EQ(loss["mean"][0], 101);
  EXPECT_TRUE(loss["mean"][6].is_null());
  EXPECT_FALSE(loss.contains("min"));
  EXPECT_EQ(data["validation"]["step"], (nlohmann::json{10, 20}));
  EXPECT_EQ(data["stages"][1]["name"], "tuning");
  EXPECT_EQ(data["stages"][1]["from"], 11);
}

TEST(PageData, LongRunsBecomePointsWithARange) {
  const std::string text = page_data(long_run(100'000));
  EXPECT_LT(text.size(), size_t{4} << 20);
  const auto data = nlohmann::json::parse(text);
  const auto& loss = data["curves"]["columns"]["loss"];
  ASSERT_EQ(loss["mean"].size(), 1000u);
  EXPECT_EQ(loss["min"][0], 101);
  EXPECT_EQ(loss["max"][0], 200);
  EXPECT_NEAR(loss["mean"][0].get<double>(), 150.5, 0.6);
  EXPECT_EQ(data["curves"]["x"]["step"].back(), 100'000);
  EXPECT_EQ(data["validation"]["step"].back(), 100'000);
  EXPECT_LE(data["validation"]["step"].size(), 1000u);
}

TEST(PageData, ManyGroupsExpertsAndMapsStayBelowTheLimit) {
  RunRecord run = long_run(100);
  for (int64_t step = 100; step <= 30'000; step += 100) {
    for (int64_t layer = 0; layer < 60; ++layer) {
      GateRow row{.step = step, .gate = {}};
      row.gate.layer = layer;
      row.gate.kept_mass = 1 / 3.0;
      row.gate.choosing_rows = row.gate.dropping_rows = 9;
      row.gate.frequency.fill(1 / 7.0);
      run.gates.gates.push_back(row);
      run.gates.experts.push_back({.step = step,
                                   .moe_layer = layer,
                                   .tokens = std::vector<double>(64, 1 / 9.0 * (step + 1))});
    }
  }
  run.maps.maps.assign(2000, {.step = 1, .bins = 64, .shades = std::string(2080, '\x7f')});
  const std::string text = page_data(run);
  EXPECT_LT(text.size(), size_t{9} << 20);
  const auto data = nlohmann::json::parse(text);
  EXPECT_EQ(data["gates"].size(), 60u);
  EXPECT_EQ(data["gates"][0]["step"].back(), 30'000);
  EXPECT_EQ(data["gates"][0]["frequency"][0].size(), 20u);
  EXPECT_EQ(data["experts"][59]["load"][0].size(), 64u);
  // 2080 bytes of 0x7F in base 64.
  const std::string shades = data["maps"][0]["shades"];
  EXPECT_EQ(shades.size(), 2776u);
  EXPECT_EQ(shades.substr(0, 8), "f39/f39/");
  EXPECT_EQ(shades.substr(2772), "fw==");
}

TEST(ReportPage, NothingOfARunBecomesMarkup) {
  const std::string page = report_page(long_run(20));
  EXPECT_EQ(page.find("<script>alert"), std::string::npos);
  EXPECT_EQ(page.find("</script><b>"), std::string::npos);
  EXPECT_NE(page.find("<title>runs/&lt;script&gt;alert"), std::string::npos);
  EXPECT_EQ(page.find("{{"), std::string::npos);
}

TEST(ReportPage, AsksNobodyForAnything) {
  const std::string page = report_page(long_run(20));
  EXPECT_NE(page.find("default-src 'none'"), std::string::npos);
  for (const char* call : {"fetch(", "XMLHttpRequest", "WebSocket", "import(", "<link rel=\"style",
                           "src=\"http", "href=\"http", "url(h", "url(\"", "url(/", "@import"}) {
    EXPECT_EQ(page.find(call), std::string::npos) << call;
  }
}

}  // namespace
}  // namespace tessera
