// What tessera report has put into the page (runtime/report/page_data.cc).

const data = JSON.parse(document.getElementById("data").textContent);
