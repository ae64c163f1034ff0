import { render } from "preact";
import { App } from "./app";
import { follow } from "./live";
import "./console.css";

const place = document.getElementById("app");
if (place) {
  place.replaceChildren();
  render(<App />, place);
  void follow();
}
