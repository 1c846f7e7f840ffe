// Portkey's start script binds a port on every interface and has no option for another address; a
// benchmark serves on loopback alone. Preloaded by node: servers that name no address get 127.0.0.1.
const { Server } = require("node:net");

const listen = Server.prototype.listen;
Server.prototype.listen = function (first, ...rest) {
  if (typeof first === "number") {
    return typeof rest[0] === "string"
      ? listen.call(this, first, ...rest)
      : listen.call(this, first, "127.0.0.1", ...rest.filter((one) => one !== undefined));
  }
  const bound = first && typeof first === "object" && "port" in first && !first.host;
  return listen.call(this, bound ? { ...first, host: "127.0.0.1" } : first, ...rest);
};
