// Exchanges the token for a cookie, then opens the page.

const form = document.getElementById("login");
const problem = document.getElementById("problem");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  problem.textContent = "";
  const token = form.elements.token.value;
  try {
    const response = await fetch("/api/v1/session", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ token }),
    });
    if (response.ok) {
      location.replace("/");
      return;
    }
    problem.textContent = (await response.json()).error.message;
  } catch {
    problem.textContent = "The console does not answer.";
  }
  form.elements.token.select();
});
